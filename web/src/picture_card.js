/** One picture on the page: its progress, before and after, and its buttons. */
import { derain } from "./derain.js";
import { restore } from "./network.js";
import { PictureError, UNREADABLE, read, write } from "./picture_file.js";

const BACKENDS = {
  webgpu: "The network runs on the graphics card of this device (WebGPU).",
  wasm: "The network runs on the processor of this device (WebAssembly).",
};

// Pixels. Larger tiles need more memory, smaller ones compute more overlaps.
const TILE = navigator.deviceMemory >= 8 ? 1024 : 512;

export class PictureCard {
  /**
   * @param file the picture.
   * @param onClose called when the visitor closes it.
   */
  constructor(file, onClose) {
    this.file = file;
    this.waiting = true;
    this.task = null; // of the call of `derain` whose result is wanted
    const template = document.getElementById("picture");
    this.element = template.content.firstElementChild.cloneNode(true);
    this.find("h2").textContent = file.name;
    this.find("button").setAttribute("aria-label", `Close ${file.name}`);
    this.find("button").addEventListener("click", () => {
      this.stop();
      this.element.remove();
      URL.revokeObjectURL(this.find("img.before").src);
      onClose();
    });
    this.say("Waiting");
    this.showBefore();
    this.listenToSplit();
  }

  find(selector) {
    return this.element.querySelector(selector);
  }

  /** Takes the picture's result away and lets it wait for `derain` once more. */
  reset() {
    this.stop();
    this.waiting = true;
    this.say("Waiting");
  }

  /** Removes the rain and shows the result, or says why there is none. */
  async derain(weights) {
    this.waiting = false;
    const task = (this.task = {});
    const wanted = () => this.task === task;
    try {
      this.say("Starting");
      const picture = await read(this.file);
      const { width, height } = picture.pixels;
      const target = new ImageData(width, height);
      let firstDone;
      for await (const { done, total } of derain(picture.pixels, target, TILE, runWith(weights))) {
        if (!wanted()) return;
        if (done === 1) firstDone = performance.now();
        this.showProgress(done, total, firstDone);
      }
      const written = await write(this.file, picture, target);
      if (wanted()) await this.showAfter(written, `${width} × ${height}`, wanted);
    } catch (error) {
      if (wanted()) this.fail(error);
    }
  }

  /** Makes an unfinished `derain` return without a result, and hides the result of a finished one. */
  stop() {
    this.task = null;
    this.waiting = false;
    URL.revokeObjectURL(this.find("img.after").src);
    for (const part of this.element.querySelectorAll(".result")) part.hidden = true;
    this.find("progress").hidden = true;
  }

  showBefore() {
    const image = this.find("img.before");
    image.addEventListener("load", () => (this.find("figure").hidden = false));
    image.addEventListener("error", () => this.fail(new PictureError(UNREADABLE)));
    image.src = URL.createObjectURL(this.file);
  }

  showProgress(done, total, firstDone) {
    const bar = this.find("progress");
    bar.hidden = false;
    bar.setAttribute("aria-label", `Progress of ${this.file.name}`);
    if (done === 0) {
      bar.removeAttribute("value"); // the length of the first step is unknown
      this.say("Working");
      return;
    }
    bar.max = total;
    bar.value = done;
    const left = ((performance.now() - firstDone) / (done - 1)) * (total - done);
    const estimate = done > 1 && done < total ? `, ${duration(left)} left` : "";
    this.say(`Tile ${done} of ${total}${estimate}`);
  }

  async showAfter({ blob, name, notes }, size, wanted) {
    const image = this.find("img.after");
    image.src = URL.createObjectURL(blob);
    await image.decode();
    if (!wanted()) return; // other weights were chosen meanwhile
    const download = this.find("a");
    download.href = image.src;
    download.download = name;
    download.setAttribute("aria-label", `Download ${name}`);
    this.find("progress").hidden = true;
    for (const part of this.element.querySelectorAll(".result")) part.hidden = false;
    this.say([size, ...notes].join(", "));
    this.announce("The rain is removed.");
  }

  fail(error) {
    this.stop();
    const sentence =
      error instanceof PictureError ? error.message : `The network failed: ${error.message}`;
    this.say(sentence, true);
    this.announce(sentence);
  }

  say(text, failed = false) {
    this.find(".state").textContent = text;
    this.element.classList.toggle("failed", failed);
  }

  /** Says it to users of screen readers, who are not told of each tile. */
  announce(text) {
    document.getElementById("announcement").textContent = `${this.file.name}: ${text}`;
  }

  /** The slider between before and after: by keyboard, or by pointing anywhere on the picture. */
  listenToSplit() {
    const figure = this.find("figure");
    const split = this.find(".split");
    split.setAttribute("aria-label", `Before and after, ${this.file.name}`);
    const update = () => {
      figure.style.setProperty("--split", `${split.value}%`);
      split.setAttribute("aria-valuetext", `${split.value} % before, ${100 - split.value} % after`);
    };
    const point = (event) => {
      const { left, width } = figure.getBoundingClientRect();
      split.value = (100 * (event.clientX - left)) / width;
      update();
    };
    split.addEventListener("input", update);
    figure.addEventListener("pointerdown", (event) => {
      figure.setPointerCapture(event.pointerId);
      point(event);
    });
    figure.addEventListener("pointermove", (event) => {
      if (figure.hasPointerCapture(event.pointerId)) point(event);
    });
    update();
  }
}

/** The network with some weights, as `derain` takes it. */
function runWith(weights) {
  return async (tile, height, width) => {
    const { restored, backend } = await restore(weights, tile, height, width);
    document.getElementById("backend").textContent = BACKENDS[backend];
    return restored;
  };
}

function duration(milliseconds) {
  const seconds = Math.ceil(milliseconds / 1000);
  return seconds < 90 ? `${seconds} s` : `${Math.ceil(seconds / 60)} min`;
}
