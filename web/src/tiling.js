/** Overlapping tiles and the weights that blend them, as in manas_jax/inference/tiling.py. */

/**
 * Tiles along one axis: as few as the overlap allows, shortened by multiples of `step` as far as
 * the same number still overlaps enough. All arguments are pixels and multiples of `alignment`.
 */
export function tileGrid(length, tile, overlap, alignment, step) {
  if (length <= tile) return { length, tile: length, starts: [0], overlap };
  const gaps = Math.ceil((length - tile) / (tile - overlap));
  const excess = (tile - overlap) * gaps - (length - tile);
  tile -= roundDown(excess / (gaps + 1), step);
  const last = length - tile;
  const starts = Array.from({ length: gaps }, (_, i) => roundDown((last * i) / gaps, alignment));
  return { length, tile, starts: [...starts, last], overlap };
}

/**
 * The weight of each pixel of each tile; at every pixel of the axis they sum to 1. At an edge inside
 * the picture a weight is zero over a quarter of the overlap, then rises linearly over half of it.
 */
export function blendWeights({ length, tile, starts, overlap }) {
  const ramp = (distance) => Math.min(Math.max((distance - overlap / 4) / (overlap / 2), 0), 1);
  const weights = starts.map((_, t) =>
    Float64Array.from({ length: tile }, (_, i) => {
      const rising = t > 0 ? ramp(i + 0.5) : 1;
      const falling = t < starts.length - 1 ? ramp(tile - i - 0.5) : 1;
      return rising * falling;
    }),
  );
  const total = new Float64Array(length);
  starts.forEach((start, t) => weights[t].forEach((weight, i) => (total[start + i] += weight)));
  return starts.map((start, t) => weights[t].map((weight, i) => weight / total[start + i]));
}

/** The largest multiple of `unit` that is no larger than `value`. */
function roundDown(value, unit) {
  return Math.floor(value / unit) * unit;
}
