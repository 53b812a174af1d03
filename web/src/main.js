/** The page: takes pictures, de-rains one after another and shows the results. */
import { PictureCard } from "./picture_card.js";
import { WEIGHTS } from "./weights.js";

const files = document.getElementById("files");
const weights = document.getElementById("weights");
const list = document.getElementById("pictures");

let cards = [];
let busy = false;

for (const { name, label } of WEIGHTS) weights.add(new Option(label, name));

files.addEventListener("change", () => {
  add(files.files);
  files.value = ""; // so that the same file can be chosen again
});
document.addEventListener("paste", (event) => add(event.clipboardData.files));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  add(event.dataTransfer.files);
});
weights.addEventListener("change", () => {
  for (const card of cards) card.reset();
  work();
});

function add(chosen) {
  for (const file of chosen) {
    const card = new PictureCard(file, () => {
      cards = cards.filter((other) => other !== card);
      files.focus();
    });
    cards.push(card);
    list.append(card.element);
  }
  work();
}

/** De-rains the waiting pictures; the network takes one tile at a time. */
async function work() {
  if (busy) return;
  busy = true;
  for (let card; (card = cards.find(({ waiting }) => waiting)); ) await card.derain(weights.value);
  busy = false;
}

/** Gets WebAssembly several threads: the page is loaded once more, through the service worker. */
async function isolate() {
  if (crossOriginIsolated || !navigator.serviceWorker) return;
  navigator.serviceWorker.addEventListener("controllerchange", () => {
    if (!cards.length) location.reload();
  });
  await navigator.serviceWorker.register("isolation.js");
}

isolate();
