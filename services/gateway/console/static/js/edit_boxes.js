/**
 * Boxes corrected by hand: drawn, moved, resized, deleted, and given another class. Detections say `by_hand`, and the
 * answer keeps those that were deleted.
 */

import { call } from "./gateway.js";
import { Editor } from "./edit.js";
import { countBoxes } from "./export_one.js";
import { KEY, keyOf } from "./findings.js";

/** Pixels of the screen: how far from a border it can be gripped, and the least side of a new box. */
const GRIP = 9;
const LEAST = 4;

const round = (value) => Math.round(10 * value) / 10;
const clamp = (value, most) => Math.max(0, Math.min(most, value));

export const create = (page) => new BoxEditor(page);

class BoxEditor extends Editor {
  static keys = "Arrows move the chosen box, with Alt its lower right corner, with Shift by ten; N adds a box, Delete removes, 1 to 9 set the class, J and K choose.";

  constructor(page) {
    super(page);
    page.on("click", "edit-new", () => this.add());
    page.on("change", "edit-class", () => this.rename());
  }

  /** The classes are those of the model, and any others in the answer. */
  async loadClasses() {
    const { model } = this.page.answer;
    if (this.model !== model) {
      const { details } = await call(`/v1/models/${model}`).then((answer) => answer.json(), () => ({}));
      Object.assign(this, { model, classes: details?.classes ?? [] });
    }
    const names = [...new Set([...this.classes, ...this.page.answer.detections.map(({ label }) => label)])];
    const select = this.page.part("edit-class");
    if (names.join("\n") !== [...select.options].map(({ value }) => value).join("\n")) select.replaceChildren(...names.map((name) => new Option(name)));
    this.showClass();
  }

  refresh() {
    super.refresh();
    this.drag = null;
    if (this.isOn) this.loadClasses();
  }

  get chosen() {
    const key = this.page.highlight?.key;
    return key === undefined ? undefined : this.page.answer.detections.find((each) => keyOf(each) === key);
  }

  /** Show the class of the chosen box in the menu. */
  showClass() {
    this.page.part("edit-delete").disabled = !this.chosen;
    if (this.chosen) this.page.part("edit-class").value = this.chosen.label;
  }

  begin(point) {
    const reach = GRIP * this.grain;
    const sides = this.chosen && findSides(this.chosen.box, point, reach);
    const hit = sides ? this.chosen : this.findBox(point);
    if (hit) this.page.findings.chooseKey(keyOf(hit));
    this.drag = { before: this.item.answer, start: point, key: hit && keyOf(hit), box: hit?.box ?? [...point, ...point], sides: sides ?? (hit ? [0, 0] : [1, 1]) };
  }

  move(point) {
    const { drag } = this;
    if (!drag) return this.showGrip(point);
    const by = [point[0] - drag.start[0], point[1] - drag.start[1]];
    if (!drag.key && Math.hypot(...by) < LEAST * this.grain) return undefined;
    drag.key ??= this.createBox(drag.box);
    return this.moveTo(drag.key, shift(drag.box, by, drag.sides, this.page.answer));
  }

  release() {
    const { drag } = this;
    this.drag = null;
    if (!drag) return;
    if (this.item.answer === drag.before) return this.page.findings.chooseKey(drag.key);
    this.finish(drag.before, drag.key);
  }

  /** Add a box without a pointer, in the middle. */
  add() {
    const { width, height } = this.page.answer;
    const before = this.item.answer;
    this.finish(before, this.createBox([0.4 * width, 0.4 * height, 0.6 * width, 0.6 * height].map(Math.round)));
  }

  createBox(box) {
    const label = this.page.part("edit-class").value || "object";
    const key = `by-hand-${(this.count = (this.count ?? 0) + 1)}-${Date.now()}`;
    this.replace([...this.page.answer.detections, describeBox({ [KEY]: key, score: null, label, class_id: this.findClass(label), by_hand: "added" }, box, this.scale)]);
    return key;
  }

  findClass(label) {
    const { detections } = this.page.answer;
    const at = this.classes.indexOf(label);
    return at >= 0 ? at : (detections.find((each) => each.label === label)?.class_id ?? detections.length);
  }

  /** Micrometres a pixel, where the answer has them. */
  get scale() {
    const measured = this.page.answer.detections.find(({ microns }) => microns);
    return measured && measured.microns.radius / measured.radius;
  }

  /** Give a box other facts. */
  change(key, facts) {
    const { scale } = this;
    this.replace(this.page.answer.detections.map((each) => {
      if (keyOf(each) !== key) return each;
      return describeBox({ ...each, ...facts, [KEY]: key, by_hand: each.by_hand ?? "changed" }, facts.box ?? each.box, scale);
    }));
  }

  moveTo(key, box) {
    this.change(key, { box: box.map(round) });
    this.page.redraw();
  }

  rename() {
    const [{ chosen }, label] = [this, this.page.part("edit-class").value];
    if (!chosen || chosen.label === label) return;
    const before = this.item.answer;
    this.change(keyOf(chosen), { label, class_id: this.findClass(label) });
    this.finish(before, keyOf(chosen), `Class: ${label}.`);
  }

  remove() {
    const { chosen } = this;
    if (!chosen) return;
    const before = this.item.answer;
    const { detections } = this.page.answer;
    const at = detections.indexOf(chosen);
    const gone = chosen.by_hand === "added" ? [] : [chosen];
    this.replace(detections.filter((each) => each !== chosen), [...(before.deleted_by_hand ?? []), ...gone]);
    const next = this.page.answer.detections[Math.min(at, detections.length - 2)];
    this.finish(before, next && keyOf(next), `Deleted ${chosen.label}.`);
  }

  /** Replace the boxes of the answer; `finish` makes it a step. */
  replace(detections, deleted = this.item.answer.deleted_by_hand) {
    this.item.original ??= this.item.answer;
    const { summary, columns, crops, overlay, ...rest } = this.item.answer; // they are of the model's boxes
    this.item.answer = this.page.answer = { ...rest, ...countBoxes(detections), ...(deleted?.length && { deleted_by_hand: deleted }) };
  }

  /** Make what changed since an answer one step. Repeated presses of a key on the same box are one, too. */
  finish(before, key, words, tag) {
    const { item } = this;
    const last = this.edits.past.at(-1);
    const isSame = tag !== undefined && last?.tag === tag;
    const first = isSame ? last.before : before;
    const after = item.answer;
    if (isSame) this.edits.past.pop();
    this.push({ tag, before: first, undo: () => (item.answer = first), redo: () => (item.answer = after) });
    this.update();
    this.page.findings.chooseKey(key);
    this.showClass();
    const box = this.chosen?.box;
    this.note(words ?? (box ? `${this.chosen.label}: ${box.slice(0, 2).map(Math.round).join(", ")}, ${Math.round(box[2] - box[0])} × ${Math.round(box[3] - box[1])} px.` : ""));
  }

  act(key, event, step) {
    const { chosen } = this;
    const nth = /^[1-9]$/.test(key) && this.page.part("edit-class").options[Number(key) - 1];
    if (key === "n") this.add();
    else if (key === "escape" && this.drag) this.abandon();
    else if (!chosen) return false;
    else if (key === "delete" || key === "backspace") this.remove();
    else if (nth) {
      this.page.part("edit-class").value = nth.value;
      this.rename();
    } else if (step) {
      const before = this.item.answer;
      const by = step.map((one) => one * (event.shiftKey ? 10 : 1));
      this.change(keyOf(chosen), { box: shift(chosen.box, by, event.altKey ? [1, 1] : [0, 0], before).map(round) });
      this.finish(before, keyOf(chosen), undefined, `${keyOf(chosen)} ${event.altKey}`);
    } else return false;
    return true;
  }

  abandon() {
    this.item.answer = this.page.answer = this.drag.before;
    this.drag = null;
    this.page.redraw();
  }

  /** The smallest box that is shown around a point. */
  findBox([x, y]) {
    const shown = this.page.listShown(this.page.answer);
    return shown.filter(({ box }) => x >= box[0] && y >= box[1] && x <= box[2] && y <= box[3]).sort((a, b) => a.area - b.area)[0];
  }

  showGrip(point) {
    const sides = this.chosen && findSides(this.chosen.box, point, GRIP * this.grain);
    this.canvas.dataset.grip = sides ? (sides[0] && sides[1] ? (sides[0] === sides[1] ? "nwse" : "nesw") : sides[0] ? "ew" : "ns") : this.findBox(point) ? "move" : "new";
  }

  /** Draw the handles of the chosen box. */
  draw(context, scale) {
    const box = this.isOn && this.chosen?.box;
    if (!box) return;
    const [x1, y1, x2, y2] = box.map((at) => at * scale);
    const side = (GRIP * this.grain * scale) / 1.3;
    context.lineWidth = side / 5;
    context.fillStyle = "#fff";
    context.strokeStyle = "#111";
    for (const x of [x1, (x1 + x2) / 2, x2]) {
      for (const y of [y1, (y1 + y2) / 2, y2]) {
        if (x === (x1 + x2) / 2 && y === (y1 + y2) / 2) continue;
        context.fillRect(x - side / 2, y - side / 2, side, side);
        context.strokeRect(x - side / 2, y - side / 2, side, side);
      }
    }
  }

  correct(item) {
    if (this.edits.past.length === 0) item.answer = item.original ?? item.answer;
  }
}

/** A detection with a box, and the sizes that follow from it. */
function describeBox(facts, box, scale) {
  const [width, height] = [box[2] - box[0], box[3] - box[1]];
  const sizes = { area: round(width * height), radius: round((width + height) / 4) };
  const microns = scale && { width: width * scale, height: height * scale, radius: sizes.radius * scale, area: width * height * scale * scale };
  return { ...facts, box, ...sizes, ...(microns && { microns }) };
}

/** The sides of a box near a point: -1, 0 or 1 along x and y; null where neither is. */
function findSides([x1, y1, x2, y2], [x, y], reach) {
  if (x < x1 - reach || x > x2 + reach || y < y1 - reach || y > y2 + reach) return null;
  const near = (low, high, at) => {
    const within = Math.min(reach, Math.max(1, (high - low) / 3)); // of a small box the middle still moves it
    return Math.abs(at - high) <= (at > high ? reach : within) ? 1 : Math.abs(at - low) <= (at < low ? reach : within) ? -1 : 0;
  };
  const sides = [near(x1, x2, x), near(y1, y2, y)];
  return sides[0] || sides[1] ? sides : null;
}

/** A box moved, or with some sides moved, inside a picture. */
function shift([x1, y1, x2, y2], [dx, dy], [sx, sy], { width, height }) {
  if (!sx && !sy) {
    const [left, top] = [clamp(x1 + dx, width - (x2 - x1)), clamp(y1 + dy, height - (y2 - y1))];
    return [left, top, left + x2 - x1, top + y2 - y1];
  }
  const xs = [sx < 0 ? clamp(x1 + dx, width) : x1, sx > 0 ? clamp(x2 + dx, width) : x2].sort((a, b) => a - b);
  const ys = [sy < 0 ? clamp(y1 + dy, height) : y1, sy > 0 ? clamp(y2 + dy, height) : y2].sort((a, b) => a - b);
  return [xs[0], ys[0], Math.max(xs[1], xs[0] + 1), Math.max(ys[1], ys[0] + 1)];
}
