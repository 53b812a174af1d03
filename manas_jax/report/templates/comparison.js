// Shows two versions of a picture at once, divided by a boundary that a slider moves.
for (const comparison of document.querySelectorAll(".comparison")) {
  const pictures = comparison.querySelector(".pictures");
  const range = pictures.querySelector("input");
  if (!range) continue; // one version alone
  const choices = comparison.querySelector("fieldset");

  const move = () => {
    pictures.style.setProperty("--split", `${range.value}%`);
    const left = pictures.querySelector(".left").dataset.kind;
    range.setAttribute("aria-valuetext", `${range.value}% ${left}`);
  };
  const compare = (left, right) => {
    for (const figure of pictures.querySelectorAll("figure")) {
      figure.classList.toggle("left", figure.dataset.kind === left);
      figure.classList.toggle("right", figure.dataset.kind === right);
    }
    range.setAttribute("aria-label", `Boundary between the ${left} and the ${right} picture`);
    move();
  };

  pictures.classList.add("divided");
  range.hidden = false;
  range.addEventListener("input", move);
  const kinds = [...pictures.querySelectorAll("figure")].map((figure) => figure.dataset.kind);
  compare(kinds[0], kinds[1]);
  if (choices) {
    choices.hidden = false;
    choices.addEventListener("change", (event) => compare(...event.target.value.split(" ")));
  }
}
