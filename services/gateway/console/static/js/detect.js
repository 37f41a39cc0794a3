/**
 * A picture in, boxes on it. The model is asked for more than is shown, so that confidence and classes move here;
 * the files to keep are asked for anew, with exactly what is shown.
 */

import { blank } from "./canvas.js";
import { PicturePart } from "./picture.js";
import { save } from "./save.js";
import { submit } from "./submit.js";

/** Longest side, in pixels, at which the page draws, also for small pictures: names stay small beside their boxes. */
const DRAWN = 1280;

/** Confidence from which the model is asked: what the slider can still bring up without asking again. */
const LEAST = 0.05;

/** The colour of a class, as the service draws it: hues a golden angle apart. */
export function colourOfClass(kind) {
  const hue = 360 * ((0.42 + kind * 0.381966) % 1);
  const [saturation, value] = [0.85, 0.95];
  const light = value * (1 - saturation / 2);
  return `hsl(${hue} ${(100 * (value - light)) / Math.min(light, 1 - light)}% ${100 * light}%)`;
}

export class Detect extends PicturePart {
  static doing = "Detecting";
  static unseen = "this browser shows only its boxes";

  connectedCallback() {
    super.connectedCallback();
    this.unwanted = new Set();
    this.on("input", "confidence", () => this.redraw());
    this.on("input", "iou", () => this.redraw());
    this.on("input", "names", () => this.redraw());
    this.on("change", "confidence", () => this.answer && this.least > this.confidence - 1e-9 && this.run());
    this.on("change", "iou", () => this.run());
    this.on("change", "classes", (event) => this.toggle(event.target));
    this.on("click", "keep", (_, button) => this.keep(button));
    this.addEventListener("fovea-model", () => this.renew());
  }

  /** Another model knows other classes. */
  renew() {
    this.unwanted.clear();
    this.forget();
    this.run();
  }

  forget() {
    this.answer = null;
  }

  begin() {
    if (this.picture) this.canvas(this.picture);
    this.redraw();
  }

  get confidence() {
    return this.part("confidence").valueAsNumber;
  }

  /** Slices are joined across their borders, which low scores may change: then nothing beyond what is shown is asked. */
  get asking() {
    this.least = this.options.tile ? this.confidence : Math.min(this.confidence, LEAST);
    return { ...this.options, confidence: this.least, iou: this.part("iou").valueAsNumber };
  }

  async receive(answer, milliseconds) {
    this.answer = answer;
    if (!this.picture) this.canvas(answer);
    this.say("size", `${answer.width} × ${answer.height}`);
    this.say("slices", answer.slices ? String(answer.slices) : "–");
    this.say("infer", `${Math.round(answer.times.infer)} ms`);
    this.say("time", `${Math.round(milliseconds)} ms`);
    this.show(true, "result");
    this.redraw();
  }

  /** Give the canvas the size at which a picture is drawn. */
  canvas({ width, height }) {
    const scale = DRAWN / Math.max(width, height);
    Object.assign(this.part("canvas"), { width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) });
  }

  /** Boxes of enough confidence, of all classes. */
  get found() {
    return (this.answer?.detections ?? []).filter((each) => each.score > this.confidence);
  }

  toggle(box) {
    const name = box.closest("tr").dataset.name;
    if (box.checked) this.unwanted.delete(name);
    else this.unwanted.add(name);
    this.redraw();
  }

  redraw() {
    this.say("confidence-figure", this.confidence.toFixed(2));
    this.say("iou-figure", this.part("iou").valueAsNumber.toFixed(2));
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = null;
      const context = this.part("canvas").getContext("2d");
      const { width, height } = context.canvas;
      context.clearRect(0, 0, width, height);
      if (this.picture) context.drawImage(this.picture, 0, 0, width, height);
      if (!this.answer) return;
      const shown = this.found.filter((each) => !this.unwanted.has(each.label));
      for (const each of shown.toReversed()) this.box(context, each, width / this.answer.width);
      this.tell(shown);
    });
  }

  /** One box with its name on a strip of its colour, above it or inside where there is no room. */
  box(context, { box, label, score, class_id: kind }, scale) {
    const [x1, y1, x2, y2] = box.map((corner) => corner * scale);
    const line = Math.max(2, Math.max(context.canvas.width, context.canvas.height) / 400);
    context.strokeStyle = context.fillStyle = colourOfClass(kind);
    context.lineWidth = line;
    context.strokeRect(x1, y1, x2 - x1, y2 - y1);
    if (!this.part("names").checked) return;
    const size = Math.max(10, context.canvas.width / 60);
    context.font = `600 ${size}px sans-serif`;
    const text = `${label} ${score.toFixed(2)}`;
    const [wide, high] = [context.measureText(text).width + size / 2, size * 1.3];
    const left = Math.max(0, Math.min(x1 - line / 2, context.canvas.width - wide));
    const top = y1 >= high ? y1 - high : y1;
    context.fillRect(left, top, wide, high);
    context.fillStyle = "#000";
    context.fillText(text, left + size / 4, top + size);
  }

  /** Numbers of what is shown, and the classes with theirs. */
  tell(shown) {
    const all = this.found;
    this.say("found", shown.length === all.length ? String(all.length) : `${shown.length} of ${all.length}`);
    this.show(all.length > 0, "tally");
    this.show(all.length === 0, "verdict");
    const best = Math.max(0, ...this.answer.detections.map((each) => each.score));
    this.say("verdict", `Nothing here scores more than ${this.confidence.toFixed(2)}. The best candidate has ${best.toFixed(2)}.`);
    this.say("radius-head", all[0]?.microns ? "Mean radius, µm" : "Mean radius, px");
    const focused = document.activeElement?.closest?.("tr")?.dataset.name;
    this.part("classes").replaceChildren(...grouped(all).map((group) => this.row(group)));
    if (focused) this.querySelector(`tr[data-name="${CSS.escape(focused)}"] input`)?.focus();
    const counted = grouped(shown).map(({ name, rows }) => `${rows.length} ${name}`).join(", ");
    this.part("canvas").setAttribute("aria-label", `${this.file.name} with ${shown.length} boxes${counted ? `: ${counted}` : ""}`);
  }

  row({ name, kind, rows }) {
    const row = this.copyOf("class");
    row.dataset.name = name;
    row.querySelector("input").checked = !this.unwanted.has(name);
    row.querySelector(".swatch").append(swatch(colourOfClass(kind)));
    row.querySelector(".class-name").textContent = name;
    const radii = rows.map((each) => each.microns?.radius ?? each.radius);
    const cells = [String(rows.length), mean(rows.map((each) => each.score)).toFixed(2), mean(radii).toFixed(1)];
    row.querySelectorAll("td").forEach((cell, at) => (cell.textContent = cells[at]));
    return row;
  }

  /** A form of the answer, as a file: the confidence and the classes that are shown. */
  async keep(button) {
    const { media, ending } = button.dataset;
    const shown = grouped(this.found).map(({ name }) => name).filter((name) => !this.unwanted.has(name));
    const body = this.body();
    body.set("confidence", String(this.confidence));
    body.set("labels", String(this.part("names").checked));
    if (this.unwanted.size) body.set("classes", JSON.stringify(shown));
    button.disabled = true;
    try {
      const response = await submit(this.dataset.path, { body, headers: { Accept: media } });
      save(await response.blob(), `${this.stem}.${ending}`);
    } catch (problem) {
      this.fault(problem);
    } finally {
      button.disabled = false;
    }
  }
}

/** Detections by class, the most frequent first. */
function grouped(found) {
  const groups = new Map();
  for (const each of found) {
    if (!groups.has(each.label)) groups.set(each.label, { name: each.label, kind: each.class_id, rows: [] });
    groups.get(each.label).rows.push(each);
  }
  return [...groups.values()].sort((a, b) => b.rows.length - a.rows.length);
}

const mean = (numbers) => numbers.reduce((sum, number) => sum + number, 0) / (numbers.length || 1);

/** A square of a colour, drawn: a style attribute would break the page's security policy. */
function swatch(colour) {
  const context = blank(12, 12);
  context.fillStyle = colour;
  context.fillRect(0, 0, 12, 12);
  return context.canvas;
}
