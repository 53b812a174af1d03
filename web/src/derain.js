/** Removes rain from a picture tile by tile, as `Derainer` of manas_jax/inference/derainer.py does. */
import { blendWeights, tileGrid } from "./tiling.js";

// Pixels. The network's gates look at windows of such squares, so tiles start at multiples of them.
const POOL_SIDE = 32;
const OVERLAP = 192;
const STEP = 64;

/**
 * Yields { done, total }, numbers of tiles, before the first tile and after each.
 *
 * @param source picture: `width`, `height` and `data` in RGBA, as in ImageData.
 * @param target picture of the same size, which receives the result; alpha is copied.
 * @param side largest side of a tile in pixels: a multiple of 32, more than twice the overlap.
 * @param run takes a tile as RGB floats in [0, 1], its height and width; promises the same restored.
 */
export async function* derain(source, target, side, run) {
  const { width, height } = source;
  const [down, across] = [height, width].map((length) =>
    tileGrid(Math.ceil(length / POOL_SIDE) * POOL_SIDE, side, OVERLAP, POOL_SIDE, STEP),
  );
  const [sharesDown, sharesAcross] = [down, across].map(blendWeights);
  const total = down.starts.length * across.starts.length;
  let done = 0;
  yield { done, total };
  let shared = []; // what the tiles above add to the rows that they share with these
  for (const [i, top] of down.starts.entries()) {
    const strip = new Float32Array(down.tile * width * 3);
    strip.set(shared);
    for (const [j, left] of across.starts.entries()) {
      const restored = await run(cut(source, top, left, down.tile, across.tile), down.tile, across.tile);
      blend(strip, width, restored, left, sharesDown[i], sharesAcross[j]);
      done += 1;
      if (j === across.starts.length - 1) {
        const rows = (down.starts[i + 1] ?? height) - top;
        quantize(strip, source, target, top, rows);
        shared = strip.subarray(rows * width * 3);
      }
      yield { done, total };
    }
  }
}

/** A tile as RGB floats in [0, 1]; beyond the picture's right and lower edge it is mirrored. */
function cut({ data, width, height }, top, left, rows, columns) {
  const tile = new Float32Array(rows * columns * 3);
  let to = 0;
  for (let y = top; y < top + rows; y++) {
    const row = mirror(y, height) * width;
    for (let x = left; x < left + columns; x++) {
      const from = (row + mirror(x, width)) * 4;
      for (let c = 0; c < 3; c++) tile[to++] = data[from + c] / 255;
    }
  }
  return tile;
}

/** The index inside an axis of that length whose pixel a mirrored picture shows at `index`. */
function mirror(index, length) {
  const i = index % (2 * length);
  return Math.min(i, 2 * length - 1 - i);
}

/** Adds a restored tile, weighted by its shares, to the strip of full width that it belongs to. */
function blend(strip, width, tile, left, shareDown, shareAcross) {
  const columns = shareAcross.length;
  const visible = Math.min(columns, width - left);
  for (let y = 0; y < shareDown.length; y++) {
    for (let x = 0; x < visible; x++) {
      const share = shareDown[y] * shareAcross[x];
      const from = (y * columns + x) * 3;
      const to = (y * width + left + x) * 3;
      for (let c = 0; c < 3; c++) strip[to + c] += share * tile[from + c];
    }
  }
}

/** Writes the first rows of a strip to the target in grey levels, with the source's alpha. */
function quantize(strip, source, target, top, rows) {
  let from = 0;
  for (let to = top * source.width * 4; to < (top + rows) * source.width * 4; to += 4) {
    for (let c = 0; c < 3; c++) target.data[to + c] = Math.floor(strip[from++] * 255 + 0.5);
    target.data[to + 3] = source.data[to + 3];
  }
}
