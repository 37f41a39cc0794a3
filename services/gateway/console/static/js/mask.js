/**
 * Arithmetic on a probability map: what is inside at a threshold, how much, in how many regions, and its picture.
 * Maps are bytes, 255 for a probability of 1, row by row. Pure functions; knows no page and no network.
 */

/** The lowest byte that counts as inside. */
export const cutOf = (threshold) => Math.max(Math.ceil(threshold * 255 - 1e-9), 0);

/**
 * What is inside: a byte per pixel (1 inside), and its 8-connected regions as pixel counts, largest first.
 * Regions under `minArea` pixels are dropped; with `keepLargest` all but the largest.
 */
export function inside(map, width, height, { threshold, minArea = 0, keepLargest = false }) {
  const { labels, sizes } = labelled(map, width, height, cutOf(threshold));
  const order = sizes.map((size, label) => [size, label]).slice(1).filter(([size]) => size >= minArea).sort(([a], [b]) => b - a);
  const kept = keepLargest ? order.slice(0, 1) : order;
  const wanted = new Uint8Array(sizes.length);
  for (const [, label] of kept) wanted[label] = 1;
  return { mask: Uint8Array.from(labels, (label) => wanted[label]), regions: kept.map(([size]) => size) };
}

/** A region number per pixel (0 outside) by flood fill, and the size of each region. */
function labelled(map, width, height, cut) {
  const labels = new Uint32Array(map.length);
  const sizes = [0];
  const open = [];
  for (let start = 0; start < map.length; start++) {
    if (labels[start] || map[start] < cut) continue;
    labels[start] = sizes.push(0) - 1;
    open.push(start);
    while (open.length) visit(open.pop());
  }
  return { labels, sizes };

  function visit(at) {
    const x = at % width;
    const y = (at - x) / width;
    sizes[labels[at]]++;
    for (let ny = Math.max(y - 1, 0); ny <= Math.min(y + 1, height - 1); ny++) {
      for (let nx = Math.max(x - 1, 0); nx <= Math.min(x + 1, width - 1); nx++) {
        const next = ny * width + nx;
        if (labels[next] || map[next] < cut) continue;
        labels[next] = labels[at];
        open.push(next);
      }
    }
  }
}

/** Area in pixels, mean probability inside (0 when nothing is), and the highest probability of the whole map. */
export function tally(map, mask) {
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
export function overlay(map, mask, width, height, { opacity, outline, heat, colour }) {
  const image = new ImageData(width, height);
  const rim = Math.max(1, Math.round(Math.max(width, height) / 640));
  const within = (x, y) => x >= 0 && y >= 0 && x < width && y < height && mask[y * width + x] === 1;
  const border = (x, y) => !(within(x - rim, y) && within(x + rim, y) && within(x, y - rim) && within(x, y + rim));
  for (let at = 0; at < map.length; at++) {
    const x = at % width;
    const edge = outline && mask[at] && border(x, (at - x) / width);
    const alpha = edge ? 1 : opacity * (heat ? map[at] / 255 : mask[at]);
    if (alpha === 0) continue;
    image.data.set(colour, at * 4);
    image.data[at * 4 + 3] = alpha * 255;
  }
  return image;
}

/** The mask as RGBA: white inside, black outside. */
export function binary(mask, width, height) {
  const image = new ImageData(width, height);
  for (let at = 0; at < mask.length; at++) image.data.set([255 * mask[at], 255 * mask[at], 255 * mask[at], 255], at * 4);
  return image;
}
