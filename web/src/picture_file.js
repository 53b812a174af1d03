/** Reads pictures from files, and writes them in the same format. */

/** Why a picture cannot be read or written, in words for the visitor. */
export class PictureError extends Error {}

export const UNREADABLE =
  "This browser cannot read the file as a picture; it reads JPEG, PNG and WebP.";

/**
 * Formats that browsers write: the first bytes of a file, and bytes near its start if it is
 * animated. Other pictures that the browser can read become PNG.
 */
const FORMATS = [
  { type: "image/png", start: /^\x89PNG/, animation: /acTL/ },
  { type: "image/jpeg", start: /^\xff\xd8\xff/ },
  { type: "image/webp", start: /^RIFF.{4}WEBP/s, animation: /ANIM/ },
];
const FALLBACK = "image/png"; // which browsers also write in place of a type that they cannot
const HEAD = 4096; // bytes
const QUALITY = 0.95;
const LOSSLESS = 1; // as a quality of WebP

/**
 * Reads a picture, upright and in sRGB.
 *
 * @returns { pixels, type, quality, notes }: an ImageData, how to write it, and what will be lost.
 * @throws PictureError
 */
export async function read(file) {
  const head = String.fromCharCode(...new Uint8Array(await file.slice(0, HEAD).arrayBuffer()));
  const format = FORMATS.find(({ start }) => start.test(head));
  const notes = [];
  if (format?.animation?.test(head) || head.startsWith("GIF8")) notes.push("first frame only");
  if (format?.type === "image/png" && head.charCodeAt(24) === 16) notes.push("8 bits per colour");
  const quality = head.includes("VP8L") ? LOSSLESS : QUALITY;
  return { pixels: await decode(file), type: format?.type, quality, notes };
}

/**
 * Writes pixels in the format of the picture that they come from. Grey pictures stay grey.
 *
 * @param file the picture's file.
 * @param picture what `read` returned for it.
 * @param pixels the new pixels, which may be changed here.
 * @returns { blob, name, notes }: the output, its file name, and what was lost.
 * @throws PictureError
 */
export async function write(file, { type, quality, notes, pixels: original }, pixels) {
  if (isGrey(original)) makeGrey(pixels);
  const context = newContext(pixels.width, pixels.height);
  context.putImageData(pixels, 0, 0);
  const blob = await context.canvas.convertToBlob({ type: type ?? FALLBACK, quality });
  const [, stem, suffix] = file.name.match(/^(.*?)(\.[^.]*)?$/s);
  if (blob.type === type) return { blob, name: `${stem}-derained${suffix ?? ""}`, notes };
  return { blob, name: `${stem}-derained.png`, notes: [...notes, "saved as PNG"] };
}

async function decode(file) {
  const bitmap = await createImageBitmap(file).catch(() => {
    throw new PictureError(UNREADABLE);
  });
  const { width, height } = bitmap;
  const context = newContext(width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return context.getImageData(0, 0, width, height);
}

/** The 2D context of a new canvas. Browsers limit its size, some of them without an error. */
function newContext(width, height) {
  try {
    const canvas = new OffscreenCanvas(width, height);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const lastPixel = [width - 1, height - 1, 1, 1];
    context.fillRect(...lastPixel);
    if (context.getImageData(...lastPixel).data[3] === 255) {
      context.clearRect(...lastPixel);
      return context;
    }
  } catch {
    // The error below says it.
  }
  throw new PictureError(`${width} × ${height} pixels are too many for this browser.`);
}

function isGrey({ data }) {
  for (let i = 0; i < data.length; i += 4) {
    if (data[i] !== data[i + 1] || data[i] !== data[i + 2]) return false;
  }
  return true;
}

/** Luma of BT.601, as the command makes it. */
function makeGrey({ data }) {
  for (let i = 0; i < data.length; i += 4) {
    const luma = (19595 * data[i] + 38470 * data[i + 1] + 7471 * data[i + 2] + 0x8000) >> 16;
    data.fill(luma, i, i + 3);
  }
}
