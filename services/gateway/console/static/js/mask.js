/**
 * Masks of a probability map: pixels above a threshold, their area and regions, and their pictures.
 * Maps are bytes, 255 for a probability of 1, row by row. Pure functions.
 */

/** The lowest byte that counts as inside. */
export const thresholdByte = (threshold) => Math.max(Math.ceil(threshold * 255 - 1e-9), 0);

/**
 * What is inside: a byte per pixel (1 inside), and its 8-connected regions as pixel counts, largest first.
 * Regions under `minArea` pixels are dropped; with `keepLargest` all but the largest.
 */
export function thresholdMask(map, width, height, { threshold, minArea = 0, keepLargest = false }) {
  const runs = findRuns(map, width, height, thresholdByte(threshold));
  const sizes = new Map();
  for (const { start, end, region } of runs) sizes.set(region, (sizes.get(region) ?? 0) + end - start);
  const order = [...sizes].filter(([, size]) => size >= minArea).sort(([, a], [, b]) => b - a);
  const kept = new Map(keepLargest ? order.slice(0, 1) : order);
  const mask = new Uint8Array(map.length);
  for (const { start, end, region } of runs) if (kept.has(region)) mask.fill(1, start, end);
  return { mask, regions: [...kept.values()] };
}

/** Runs of pixels inside, row by row, each with the number of its region: runs that touch across rows are connected. */
function findRuns(map, width, height, cut) {
  const runs = [];
  const parents = [];
  const rootOf = (run) => {
    while (parents[run] !== run) run = parents[run] = parents[parents[run]];
    return run;
  };
  let above = 0;
  for (let row = 0; row < height; row++) {
    const first = runs.length;
    const stop = (row + 1) * width;
    let touching = above;
    for (let at = row * width; at < stop; at++) {
      if (map[at] < cut) continue;
      const start = at;
      while (at < stop && map[at] >= cut) at++;
      const run = runs.push({ start, end: at }) - 1;
      parents.push(run);
      // Ends are exclusive, so equality is a touch at a corner.
      while (touching < first && runs[touching].end < start - width) touching++;
      for (let other = touching; other < first && runs[other].start <= at - width; other++) parents[rootOf(other)] = rootOf(run);
    }
    above = first;
  }
  runs.forEach((run, index) => (run.region = rootOf(index)));
  return runs;
}

/** Area in pixels, mean probability inside (0 when nothing is), and the highest probability of the whole map. */
export function measure(map, mask) {
  let area = 0;
  let sum = 0;
  let highest = 0;
  for (let at = 0; at < map.length; at++) {
    if (map[at] > highest) highest = map[at];
    if (!mask[at]) continue;
    area++;
    sum += map[at];
  }
  return { area, mean: area ? sum / area / 255 : 0, highest: highest / 255 };
}

/** The overlay as RGBA: the mask (or, with `heat`, the probability) in one colour, the mask's border drawn opaque. */
export function drawOverlay(map, mask, width, height, { opacity, outline, heat, colour: [red, green, blue] }) {
  const image = new ImageData(width, height);
  const { data } = image;
  const rim = Math.max(1, Math.round(Math.max(width, height) / 640));
  const isInside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && mask[y * width + x] === 1;
  const isBorder = (x, y) => !(isInside(x - rim, y) && isInside(x + rim, y) && isInside(x, y - rim) && isInside(x, y + rim));
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at++) {
      let alpha = opacity * (heat ? map[at] : 255 * mask[at]);
      if (outline && mask[at] && isBorder(x, y)) alpha = 255;
      if (alpha > 0) setPixel(data, at * 4, red, green, blue, alpha);
    }
  }
  return image;
}

/** The mask as RGBA: white inside, black outside. */
export function drawBinary(mask, width, height) {
  const image = new ImageData(width, height);
  for (let at = 0; at < mask.length; at++) {
    const value = 255 * mask[at];
    setPixel(image.data, at * 4, value, value, value, 255);
  }
  return image;
}

function setPixel(data, at, red, green, blue, alpha) {
  data[at] = red;
  data[at + 1] = green;
  data[at + 2] = blue;
  data[at + 3] = alpha;
}
