/**
 * Detection page: a picture and the boxes in it. The request asks for more boxes than are shown, so that confidence and
 * classes can be changed without another one; downloads are requested again, with exactly what is shown.
 */

import { createContext, drawWiped } from "./canvas.js";
import { Findings, keyOf } from "./findings.js";
import { PicturePage } from "./picture.js";
import { save } from "./save.js";
import { submit } from "./submit.js";

/** Longest side, in pixels, at which the page draws, also for small pictures: names stay small beside their boxes. */
const MAX_DRAWN_SIDE = 1280;

/** Confidence of the request: the slider can show boxes down to this one without another request. */
const MIN_CONFIDENCE = 0.05;

/** The colour of a class, as the service draws it: hues a golden angle apart. */
export function colourOfClass(kind) {
  const hue = 360 * ((0.42 + kind * 0.381966) % 1);
  const [saturation, value] = [0.85, 0.95];
  const light = value * (1 - saturation / 2);
  return `hsl(${hue} ${(100 * (value - light)) / Math.min(light, 1 - light)}% ${100 * light}%)`;
}

class Detect extends PicturePage {
  static progressLabel = "Detecting";
  static hiddenNote = "this browser shows only its boxes";
  static editor = "./edit_boxes.js";

  connectedCallback() {
    super.connectedCallback();
    this.hiddenClasses = new Set();
    this.highlight = null;
    this.findings = new Findings(this);
    this.on("input", "confidence", () => this.redraw());
    this.on("input", "confidence", () => this.answer && this.listFindings());
    this.on("input", "iou", () => this.redraw());
    this.on("input", "names", () => this.redraw());
    this.on("input", "wipe", () => this.redraw());
    this.on("change", "confidence", () => this.answer && this.requestedConfidence > this.confidence - 1e-9 && this.run());
    this.on("change", "iou", () => this.run());
    this.on("change", "classes", (event) => this.toggleClass(event.target));
    this.on("click", "keep", (_, button) => this.saveAs(button));
    this.addEventListener("fovea-model", () => this.changeModel());
  }

  /** Another model has other classes. */
  changeModel() {
    this.hiddenClasses.clear();
    this.clearAnswer();
    this.run();
  }

  clearAnswer() {
    this.answer = null;
  }

  showPicture() {
    if (this.picture) this.resizeCanvas(this.picture);
    this.redraw();
  }

  get confidence() {
    return this.part("confidence").valueAsNumber;
  }

  /** Tiles are merged across their borders, where low scores may matter: then only what is shown is requested. */
  get requestOptions() {
    this.requestedConfidence = this.options.tile ? this.confidence : Math.min(this.confidence, MIN_CONFIDENCE);
    return { ...this.options, ...this.pageOptions, confidence: this.requestedConfidence };
  }

  get pageOptions() {
    return { confidence: Math.min(this.confidence, MIN_CONFIDENCE), iou: this.part("iou").valueAsNumber };
  }

  drawCompared(context, { answer }) {
    const { width, height } = context.canvas;
    context.drawImage(this.picture, 0, 0, width, height);
    this.drawFound(context, answer, width / answer.width);
  }

  /** Draw the boxes that are shown, and of these only some, if their names are given. */
  drawFound(context, answer, scale, keys) {
    for (const each of this.listShown(answer).toReversed()) if (!keys || keys.has(keyOf(each))) this.drawBox(context, each, scale);
  }

  /** Boxes above the confidence or corrected by hand, of the classes that are shown. */
  listShown(answer) {
    return this.listAbove(answer).filter(({ label }) => !this.hiddenClasses.has(label));
  }

  listAbove(answer) {
    return (answer?.detections ?? []).filter(({ score, by_hand: byHand }) => byHand || score > this.confidence);
  }

  async receive(answer, milliseconds) {
    this.answer = answer;
    if (!this.picture) this.resizeCanvas(answer);
    this.setText("size", `${answer.width} × ${answer.height}`);
    this.setText("slices", answer.slices ? String(answer.slices) : "–");
    this.setText("infer", `${Math.round(answer.times.infer)} ms`);
    this.setText("time", `${Math.round(milliseconds)} ms`);
    this.show(true, "result");
    this.listFindings();
    this.redraw();
  }

  listFindings() {
    this.findings.show(this.describeFindings(this.current), this.current);
  }

  describeFindings({ answer }) {
    return this.listShown(answer).map(describeBox);
  }

  describeDeleted({ answer }) {
    return (answer.deleted_by_hand ?? []).map(describeBox);
  }

  showCorrected() {
    this.listFindings();
    this.redraw();
  }

  /** Resize the canvas for a picture. */
  resizeCanvas({ width, height }) {
    const scale = MAX_DRAWN_SIDE / Math.max(width, height);
    Object.assign(this.part("canvas"), { width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) });
  }

  /** Boxes above the confidence, of all classes. */
  get detections() {
    return this.listAbove(this.answer);
  }

  toggleClass(box) {
    const name = box.closest("tr").dataset.name;
    if (box.checked) this.hiddenClasses.delete(name);
    else this.hiddenClasses.add(name);
    this.listFindings();
    this.redraw();
  }

  redraw() {
    this.setText("confidence-figure", this.confidence.toFixed(2));
    this.setText("iou-figure", this.part("iou").valueAsNumber.toFixed(2));
    this.pendingFrame ??= requestAnimationFrame(() => {
      this.pendingFrame = null;
      const context = this.part("canvas").getContext("2d");
      const { width, height } = context.canvas;
      context.clearRect(0, 0, width, height);
      if (this.picture) context.drawImage(this.picture, 0, 0, width, height);
      if (!this.answer) return;
      this.comparison?.redraw();
      const [shown, scale] = [this.listShown(this.answer), width / this.answer.width];
      drawWiped(context, this.part("wipe").valueAsNumber, () => this.drawFound(context, this.answer, scale));
      this.editor?.draw(context, scale);
      this.showCounts(shown);
    });
  }

  /** One box with its name on a strip of its colour, above it or inside where there is no room. */
  drawBox(context, each, scale) {
    const { box, class_id: kind } = each;
    const [x1, y1, x2, y2] = box.map((corner) => corner * scale);
    const line = Math.max(2, Math.max(context.canvas.width, context.canvas.height) / 400);
    context.strokeStyle = context.fillStyle = colourOfClass(kind);
    context.lineWidth = this.highlight?.key === keyOf(each) ? 3 * line : line;
    context.strokeRect(x1, y1, x2 - x1, y2 - y1);
    if (!this.part("names").checked) return;
    const size = Math.max(10, context.canvas.width / 60);
    context.font = `600 ${size}px sans-serif`;
    const text = nameOf(each);
    const [wide, high] = [context.measureText(text).width + size / 2, size * 1.3];
    const left = Math.max(0, Math.min(x1 - line / 2, context.canvas.width - wide));
    const top = y1 >= high ? y1 - high : y1;
    context.fillRect(left, top, wide, high);
    context.fillStyle = "#000";
    context.fillText(text, left + size / 4, top + size);
  }

  /** Show the number of boxes, in all and by class. */
  showCounts(shown) {
    const all = this.detections;
    this.setText("found", shown.length === all.length ? String(all.length) : `${shown.length} of ${all.length}`);
    this.show(all.length > 0, "tally");
    this.show(all.length === 0, "verdict");
    const best = Math.max(0, ...this.answer.detections.map((each) => each.score));
    const warning = this.answer.warnings?.[0];
    if (warning) this.show(true, "verdict");
    this.setText("verdict", warning ?? `No objects above ${this.confidence.toFixed(2)}. Highest score: ${best.toFixed(2)}.`);
    this.part("figures").classList.toggle("doubtful", warning !== undefined);
    this.setText("radius-head", all[0]?.microns ? "Mean radius, µm" : "Mean radius, px");
    const focused = document.activeElement?.closest?.("tr")?.dataset.name;
    this.part("classes").replaceChildren(...groupByClass(all).map((group) => this.createRow(group)));
    if (focused) this.querySelector(`tr[data-name="${CSS.escape(focused)}"] input`)?.focus();
    const counts = groupByClass(shown).map(({ name, rows }) => `${rows.length} ${name}`).join(", ");
    this.part("canvas").setAttribute("aria-label", `${this.file.name} with ${shown.length} boxes${counts ? `: ${counts}` : ""}`);
  }

  createRow({ name, kind, rows }) {
    const row = this.cloneTemplate("class");
    row.dataset.name = name;
    row.querySelector("input").checked = !this.hiddenClasses.has(name);
    row.querySelector(".swatch").append(createSwatch(colourOfClass(kind)));
    row.querySelector(".class-name").textContent = name;
    const radii = rows.map((each) => each.microns?.radius ?? each.radius);
    const scores = rows.map(({ score }) => score).filter((score) => score !== null);
    const cells = [String(rows.length), scores.length ? mean(scores).toFixed(2) : "–", mean(radii).toFixed(1)];
    row.querySelectorAll("td").forEach((cell, at) => (cell.textContent = cells[at]));
    return row;
  }

  /** Download the answer in one format, with the confidence and the classes that are shown. */
  async saveAs(button) {
    const { media, ending } = button.dataset;
    const hasOwn = this.current.lacksFile || this.current.edits?.past.length || [...this.current.verdicts.values()].includes("rejected") || this.answer.deleted_by_hand;
    if (hasOwn) return this.attempt(async () => (await import("./export_one.js")).exportOne(this, this.current, media, `${this.stem}.${ending}`));
    const shown = groupByClass(this.detections).map(({ name }) => name).filter((name) => !this.hiddenClasses.has(name));
    const body = this.buildBody();
    const isNone = this.hiddenClasses.size > 0 && !shown.length; // without classes the service finds all
    body.set("confidence", String(isNone ? 1 : this.confidence));
    body.set("labels", String(this.part("names").checked));
    if (this.hiddenClasses.size && !isNone) body.set("classes", JSON.stringify(shown));
    button.disabled = true;
    try {
      const response = await submit(this.dataset.path, { body, headers: { Accept: media } });
      save(await response.blob(), `${this.stem}.${ending}`);
    } catch (problem) {
      this.showError(problem);
    } finally {
      button.disabled = false;
    }
  }
}

/** A box as a finding. */
function describeBox(each) {
  const { label, score, box, by_hand } = each;
  return { words: `${nameOf(each)}${by_hand ? `, ${by_hand} by hand` : ""}`, box, key: keyOf(each), row: { label, score, x1: box[0], y1: box[1], x2: box[2], y2: box[3], ...(by_hand && { by_hand }) } };
}

const nameOf = ({ label, score }) => (score === null ? label : `${label} ${score.toFixed(2)}`);

/** Detections by class, the most frequent first. */
function groupByClass(found) {
  const groups = new Map();
  for (const each of found) {
    if (!groups.has(each.label)) groups.set(each.label, { name: each.label, kind: each.class_id, rows: [] });
    groups.get(each.label).rows.push(each);
  }
  return [...groups.values()].sort((a, b) => b.rows.length - a.rows.length);
}

const mean = (numbers) => numbers.reduce((sum, number) => sum + number, 0) / (numbers.length || 1);

/** A square of a colour, drawn: a style attribute would break the page's security policy. */
function createSwatch(colour) {
  const context = createContext(12, 12);
  context.fillStyle = colour;
  context.fillRect(0, 0, 12, 12);
  return context.canvas;
}

customElements.define("fovea-detect", Detect);
