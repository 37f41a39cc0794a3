/**
 * Masks corrected by hand: a brush sets the map's probability to one, an eraser to zero, so that threshold and least
 * area go on acting on the rest. Regions say `by_hand`, and the answer keeps those that were deleted.
 */

import { createContext, toBlob } from "./canvas.js";
import { Editor } from "./edit.js";
import { encodeBase64 } from "./form.js";
import { KEY, keyOf } from "./findings.js";
import { drawBinary, fillRuns, findRegions, thresholdMask } from "./mask.js";

/** Most regions of an answer, as the service has them. */
const MOST = 100;

export const create = (page) => new MaskEditor(page);

class MaskEditor extends Editor {
  static keys = "Arrows move the brush, with Shift by ten; Space paints, B is the brush, E the eraser, brackets change its size, Delete removes the chosen region.";

  constructor(page) {
    super(page);
    this.value = 255;
    page.on("click", "edit-brush", () => this.choose(255));
    page.on("click", "edit-eraser", () => this.choose(0));
    page.on("input", "edit-size", () => page.redraw());
    this.canvas.addEventListener("pointerleave", () => this.isOn && this.hover(null));
    page.addEventListener("keyup", ({ key }) => key === " " && this.release());
  }

  choose(value) {
    this.value = value;
    this.page.part("edit-brush").setAttribute("aria-pressed", String(value > 0));
    this.page.part("edit-eraser").setAttribute("aria-pressed", String(value === 0));
    this.page.redraw();
  }

  refresh() {
    super.refresh();
    this.stroke = null;
  }

  /** Radius of the brush in pixels of the picture: a share of its longer side. */
  get radius() {
    const { width, height } = this.page.answer;
    return Math.max(0.5, this.page.part("edit-size").valueAsNumber * Math.max(width, height));
  }

  /** The map that is painted on; the one of the model is kept. */
  get map() {
    return keepMap(this.item, this.page.fullSize.map);
  }

  begin(point) {
    const { width, height } = this.page.answer;
    this.stroke = { before: this.map.slice(), last: point, box: [width, height, 0, 0] };
    this.paintTo(point);
  }

  move(point) {
    if (this.stroke) this.paintTo(point);
    this.hover(point);
  }

  hover(point) {
    this.cursor = point;
    this.page.redraw();
  }

  /** Paint from the last point to another one, in the map and in the one that is drawn. */
  paintTo(point) {
    const { stroke: { last, box }, radius, page: { answer: { width, height }, canvas, map: drawn } } = this;
    const scale = this.canvas.width / width;
    const count = Math.max(1, Math.ceil(Math.hypot(point[0] - last[0], point[1] - last[1]) / Math.max(1, radius / 2)));
    for (let at = 1; at <= count; at++) {
      const [x, y] = [0, 1].map((axis) => last[axis] + ((point[axis] - last[axis]) * at) / count);
      stamp(this.map, width, height, x, y, radius, this.value);
      stamp(drawn, this.canvas.width, this.canvas.height, x * scale, y * scale, Math.max(radius * scale, 0.5), this.value);
      box[0] = Math.min(box[0], Math.max(0, Math.floor(x - radius)));
      box[1] = Math.min(box[1], Math.max(0, Math.floor(y - radius)));
      box[2] = Math.max(box[2], Math.min(width, Math.ceil(x + radius) + 1));
      box[3] = Math.max(box[3], Math.min(height, Math.ceil(y + radius) + 1));
    }
    this.stroke.last = point;
    this.page.redraw();
  }

  release() {
    const { stroke } = this;
    this.stroke = null;
    if (stroke) this.finish(stroke.before, stroke.box, this.value ? "Painted." : "Erased.");
  }

  /** Make what changed inside a box since a copy of the map one step. */
  finish(copy, box, words) {
    const { map, page: { answer: { width } } } = this;
    const [before, after] = [cut(copy, width, box), cut(map, width, box)];
    if (before.every((value, at) => value === after[at])) return;
    this.push({ undo: () => paste(map, width, box, before), redo: () => paste(map, width, box, after) });
    this.update();
    this.note(`${words} ${this.item.answer.area.toLocaleString("en")} px in ${this.item.answer.component_count} regions.`);
  }

  /** Erase the region that is chosen in the list. */
  remove() {
    const [{ map, page }, key] = [this, this.page.highlight?.key];
    const chosen = (this.item.answer.components ?? []).find((one) => keyOf(one) === key);
    const { width, height } = page.answer;
    const region = chosen && findRegions(map, width, height, page.settings).find(({ box }) => box.join() === chosen.box.join());
    if (!region) return;
    const copy = map.slice();
    fillRuns(map, region.runs, 0);
    this.finish(copy, region.box, "Deleted the region.");
  }

  act(key, event, step) {
    const { width, height } = this.page.answer;
    const size = this.page.part("edit-size");
    if (key === "b" || key === "e") this.choose(key === "b" ? 255 : 0);
    else if (key === "[" || key === "]") {
      size[key === "]" ? "stepUp" : "stepDown"]();
      this.page.redraw();
    } else if (key === "delete" || key === "backspace") this.remove();
    else if (key === " ") {
      if (!this.stroke) this.begin((this.cursor ??= [width / 2, height / 2]));
    } else if (step) {
      const [x, y] = this.cursor ?? [width / 2, height / 2];
      const by = event.shiftKey ? 10 : 1;
      this.move([Math.max(0, Math.min(width, x + by * step[0])), Math.max(0, Math.min(height, y + by * step[1]))]);
    } else return false;
    return true;
  }

  /** Draw the brush. */
  draw(context, scale) {
    if (!this.isOn || !this.cursor) return;
    const [x, y] = this.cursor.map((at) => at * scale);
    for (const [colour, line] of [["#000", 3], [this.value ? "#fff" : "#ff8a1f", 1.5]]) {
      context.beginPath();
      context.arc(x, y, this.radius * scale, 0, 2 * Math.PI);
      context.strokeStyle = colour;
      context.lineWidth = line * this.grain * scale;
      context.stroke();
    }
  }

  correct(item) {
    if (item.map) describeAnew(item, this.page.settings);
  }
}

function keepMap(item, map) {
  item.map ??= map;
  item.probability ??= item.map.slice();
  return item.map;
}

function describeAnew(item, settings) {
  item.original ??= item.answer;
  item.settings = settings;
  const isOriginal = !item.edits?.past.length && JSON.stringify(settings) === JSON.stringify(item.requested);
  item.answer = isOriginal ? item.original : describeCorrected(item);
}

/** Let the answer of an item have the present threshold and least area; its pictures come with `complete`. */
export async function follow(page, item) {
  if (JSON.stringify(item.settings) === JSON.stringify(page.settings)) return;
  keepMap(item, item === page.current ? page.fullSize.map : await page.readAnswer(item));
  describeAnew(item, page.settings);
}

/** Encode the mask and the map of an answer that was made here. */
export async function complete({ answer, map, settings }) {
  if (answer.mask) return;
  const { width, height } = answer;
  const encode = async (image) => {
    const context = createContext(width, height);
    context.putImageData(image, 0, 0);
    return encodeBase64(await toBlob(context));
  };
  answer.mask = await encode(drawBinary(thresholdMask(map, width, height, settings).mask, width, height));
  answer.probability = await encode(drawBinary(map, width, height, 1));
}

/** Set the pixels in a circle. */
function stamp(map, width, height, x, y, radius, value) {
  for (let row = Math.max(0, Math.ceil(y - radius - 0.5)); row <= Math.min(height - 1, Math.floor(y + radius - 0.5)); row++) {
    const half = Math.sqrt(Math.max(0, radius * radius - (row + 0.5 - y) ** 2));
    map.fill(value, row * width + Math.max(0, Math.round(x - half)), row * width + Math.min(width, Math.max(0, Math.round(x + half))));
  }
}

/** The part of a map inside a box, and the way back. */
function cut(map, width, [x1, y1, x2, y2]) {
  const part = new Uint8Array((x2 - x1) * (y2 - y1));
  for (let y = y1; y < y2; y++) part.set(map.subarray(y * width + x1, y * width + x2), (y - y1) * (x2 - x1));
  return part;
}

function paste(map, width, [x1, y1, x2, y2], part) {
  for (let y = y1; y < y2; y++) map.set(part.subarray((y - y1) * (x2 - x1), (y - y1 + 1) * (x2 - x1)), y * width + x1);
}

/** The answer of a corrected map: its regions, which of them were added or changed, and which are gone. */
function describeCorrected({ original, probability, map, settings, edits }) {
  const { width, height } = original;
  const [was, is] = [probability, map].map((one) => findRegions(one, width, height, settings));
  const owner = new Uint32Array(map.length); // the model's region of each pixel, from 1
  was.forEach(({ runs }, at) => fillRuns(owner, runs, at + 1));
  const known = new Map((original.components ?? []).map((one) => [one.box.join(), one]));
  const kept = new Set();
  const components = is.map((region) => {
    const facts = measureRegion(region, probability, width, owner);
    const first = was[facts.owner - 1];
    if (first) for (const at of facts.owners) kept.add(at);
    const isSame = first && facts.shared === region.area && first.area === region.area;
    const before = first && known.get(first.box.join());
    const by_hand = isSame ? before?.by_hand : before?.by_hand ?? (first ? "changed" : "added");
    return { box: region.box, area: region.area, centre: facts.centre, probability: facts.probability, ...(by_hand && { by_hand }), [KEY]: first ? (before ? keyOf(before) : first.box.join()) : region.box.join() };
  });
  const gone = was.filter((_, at) => !kept.has(at + 1)).map((region) => known.get(region.box.join()) ?? { box: region.box, area: region.area });
  const area = is.reduce((sum, one) => sum + one.area, 0);
  const sum = components.reduce((all, one) => all + one.probability * one.area, 0);
  const { contours, rle, overlay, mask, probability: _, ...rest } = original; // they are of the model's mask
  return {
    ...rest, area, empty: area === 0, area_percent: (100 * area) / (width * height), mean_probability: area ? sum / area : 0,
    components: components.slice(0, MOST), component_count: is.length,
    ...(edits?.past.length && { is_corrected: true, deleted_by_hand: [...(original.deleted_by_hand ?? []), ...gone.filter(({ by_hand }) => by_hand !== "added")] }),
  };
}

/** Centre, the model's mean probability, and the model's regions below a region: the one that shares most, and all. */
function measureRegion({ runs, area }, probability, width, owner) {
  const counts = new Map();
  let [x, y, sum] = [0, 0, 0];
  for (const { start, end } of runs) {
    const row = Math.floor(start / width);
    x += ((start + end) / 2 - row * width) * (end - start);
    y += (row + 0.5) * (end - start);
    for (let at = start; at < end; at++) {
      sum += probability[at];
      if (owner[at]) counts.set(owner[at], (counts.get(owner[at]) ?? 0) + 1);
    }
  }
  const [most, shared] = [...counts].sort((a, b) => b[1] - a[1])[0] ?? [0, 0];
  return { centre: [x / area, y / area], probability: sum / area / 255, owner: most, owners: [...counts.keys()], shared };
}
