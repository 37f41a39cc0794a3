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
export function thresholdMask(map, width, height, settings) {
  const mask = new Uint8Array(map.length);
  const found = findRegions(map, width, height, settings);
  for (const { runs } of found) fillRuns(mask, runs, 1);
  return { mask, regions: found.map(({ area }) => area) };
}

/** The regions of a mask, largest first: area, the runs of their pixels, and the box around them (x2, y2 outside). */
export function findRegions(map, width, height, { threshold, minArea = 0, keepLargest = false }) {
  const regions = new Map();
  for (const { start, end, region } of findRuns(map, width, height, thresholdByte(threshold))) {
    const found = regions.get(region) ?? { area: 0, runs: [], box: [width, height, 0, 0] };
    const [row, { box }] = [Math.floor(start / width), found];
    found.area += end - start;
    found.runs.push({ start, end });
    found.box = [Math.min(box[0], start - row * width), Math.min(box[1], row), Math.max(box[2], end - row * width), row + 1];
    regions.set(region, found);
  }
  const kept = [...regions.values()].filter(({ area }) => area >= minArea).sort((a, b) => b.area - a.area);
  return keepLargest ? kept.slice(0, 1) : kept;
}

export const fillRuns = (map, runs, value) => runs.forEach(({ start, end }) => map.fill(value, start, end));

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

/** A region as COCO's run lengths: pixels outside and inside in turn, column by column. */
export function encodeRuns({ runs, box: [x1, y1, x2, y2] }, { width, height }) {
  const [columns, rows] = [x2 - x1, y2 - y1];
  const inside = new Uint8Array(columns * rows);
  for (const { start, end } of runs) {
    const y = Math.floor(start / width);
    for (let at = start; at < end; at++) inside[(at - y * width - x1) * rows + y - y1] = 1;
  }
  const counts = [];
  let [last, since] = [0, 0];
  const turn = (value, place) => {
    if (value === last) return;
    counts.push(place - since);
    [last, since] = [value, place];
  };
  for (let x = 0; x < columns; x++) {
    for (let y = 0; y < rows; y++) turn(inside[x * rows + y], (x1 + x) * height + y1 + y);
    if (y1 > 0 || y2 < height) turn(0, (x1 + x) * height + y2);
  }
  if (x2 < width) turn(0, x2 * height);
  counts.push(width * height - since);
  return { size: [height, width], counts };
}

/** Lower a map below the threshold where the service dropped a whole region, by rules that only it knows. */
export function dropUnserved(map, served, width, height, settings) {
  const below = Math.max(0, thresholdByte(settings.threshold) - 1);
  for (const { runs } of findRegions(map, width, height, settings)) if (!served[runs[0].start]) for (const { start, end } of runs) map.fill(below, start, end);
}

/** A map at the size of a canvas: the nearest pixel of each. */
export function resample({ map, width, height }, size) {
  const columns = Uint32Array.from({ length: size.width }, (_, x) => Math.min(width - 1, Math.floor(((x + 0.5) * width) / size.width)));
  const drawn = new Uint8Array(size.width * size.height);
  for (let y = 0, at = 0; y < size.height; y++) {
    const row = width * Math.min(height - 1, Math.floor(((y + 0.5) * height) / size.height));
    for (let x = 0; x < size.width; x++, at++) drawn[at] = map[row + columns[x]];
  }
  return drawn;
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

/** The mask as RGBA: white inside, black outside; with a `factor` of 1, a map in its greys. */
export function drawBinary(mask, width, height, factor = 255) {
  const image = new ImageData(width, height);
  for (let at = 0; at < mask.length; at++) {
    const value = factor * mask[at];
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
