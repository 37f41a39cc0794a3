/**
 * Segmentation page: a picture and its mask. One request gets the probability map; threshold and overlay use it here.
 */

import { drawBinary, drawOverlay, dropUnserved, encodeRuns, fillRuns, findRegions, measure, resample, thresholdMask } from "./mask.js";
import { blend, createContext, decodePicture, drawWiped, fitSize, locate, readColour, readMap, toBlob } from "./canvas.js";
import { stemOf } from "./export_all.js";
import { Findings, keyOf } from "./findings.js";
import { decodeBase64 } from "./form.js";
import { PicturePage } from "./picture.js";
import { save, saveJson } from "./save.js";

/** Longest side, in pixels, at which the page draws; downloads have the picture's own size. */
const MAX_DRAWN_SIDE = 1280;

/** Parts of the answer that this page needs. */
const INCLUDE = ["mask", "contours", "probability"];

class Segment extends PicturePage {
  static progressLabel = "Segmenting";
  static hiddenNote = "this browser shows only its mask";
  static editor = "./edit_mask.js";

  connectedCallback() {
    super.connectedCallback();
    this.highlight = null;
    this.findings = new Findings(this);
    for (const name of ["threshold", "wipe", "opacity", "outline", "heat", "options"]) this.on("input", name, () => this.redraw());
    this.on("click", "save-mask", () => this.saveMask());
    this.on("click", "save-overlay", () => this.saveOverlay());
    this.on("click", "save-json", () => this.attempt(() => this.saveAnswer()));
    this.on("pointermove", "canvas", (event, canvas) => this.showPixel(event, canvas));
    for (const name of ["threshold", "options"]) this.on("change", name, () => this.attempt(() => this.follow()));
    this.addEventListener("fovea-model", () => this.run());
  }

  /** Show the probability of the pixel under the pointer. */
  showPixel(event, canvas) {
    if (!this.map) return;
    const { width, height } = canvas;
    const [x, y] = locate(event, canvas).map(Math.floor);
    const isInside = x >= 0 && y >= 0 && x < width && y < height;
    const real = this.answer.width / width;
    this.setText("pixel", isInside ? `Pixel ${Math.round(x * real)}, ${Math.round(y * real)}: probability ${(this.map[y * width + x] / 255).toFixed(3)}` : "");
  }

  clearAnswer() {
    this.answer = this.map = null;
  }

  showPicture() {
    if (this.picture) this.resizeCanvas(this.picture);
    this.redraw();
  }

  /** The threshold is set beside the picture, not in the form. */
  get pageOptions() {
    return { threshold: this.part("threshold").valueAsNumber, include: INCLUDE };
  }

  async receive(answer, milliseconds) {
    this.answer = answer;
    const item = this.current;
    const map = item.map ?? (await this.readAnswer(item));
    if (this.current !== item || this.answer !== answer) return; // another picture was chosen meanwhile
    this.fullSize = { map, width: answer.width, height: answer.height };
    this.show(true, "result");
    this.setText("time", `${Math.round(milliseconds)} ms`);
    this.showCorrected();
  }

  /** Let the findings of the present picture be those at the threshold that is shown. */
  async follow() {
    const item = this.current;
    if (!this.map) return;
    await (await import("./edit_mask.js")).follow(this, item);
    if (item !== this.current) return;
    this.answer = item.answer;
    this.showCorrected();
  }

  async settle(item) {
    if (item.answer.mask && same(item.settings, this.settings)) return;
    const { complete, follow } = await import("./edit_mask.js");
    await follow(this, item);
    await complete(item);
    if (item === this.current) this.answer = item.answer;
  }

  /** The map of the answer of an item at the picture's own size. */
  async readAnswer({ answer, requested }) {
    const [probability, mask] = await Promise.all([answer.probability, answer.mask].map(async (text) => text && readMap(await decodePicture(decodeBase64(text, "image/png")), answer)));
    if (!probability && !mask) throw Object.assign(new Error("The answer has no mask."), { title: "Nothing to draw", hint: "Ask for `mask` or `probability` in `include`." });
    if (probability && mask) dropUnserved(probability, mask, answer.width, answer.height, requested ?? this.settings);
    return probability ?? mask;
  }

  /** Show the map of the present picture, as it was corrected, and the findings in it. */
  showCorrected() {
    if (this.current.map) this.fullSize.map = this.current.map;
    this.map = resample(this.fullSize, this.resizeCanvas(this.answer));
    this.findings.show(this.describeFindings(this.current), this.current);
    this.redraw();
  }

  async prepare(answer) {
    const prepared = await super.prepare(answer);
    const probability = await decodePicture(decodeBase64(answer.probability, "image/png"));
    return { ...prepared, map: readMap(probability, prepared.size) };
  }

  maskOf({ answer, size: { width, height }, map }) {
    const scale = (answer.width * answer.height) / (width * height);
    return thresholdMask(map, width, height, { ...this.settings, minArea: this.settings.minArea / scale }).mask;
  }

  drawCompared(context, prepared) {
    const { width, height } = context.canvas;
    context.drawImage(this.picture, 0, 0, width, height);
    blend(context, drawOverlay(prepared.map, this.maskOf(prepared), width, height, this.drawingOptions));
  }

  describeFindings({ answer }) {
    return (answer.components ?? []).map(describeRegion);
  }

  describeDeleted({ answer }) {
    return (answer.deleted_by_hand ?? []).map(describeRegion);
  }

  async describeFiles(item) {
    return [{ name: `masks/${stemOf(this, item)}.png`, blob: (await this.readMask(item)).blob }];
  }

  /** The mask of an item without the regions that were rejected: as a PNG, and its regions with their keys. */
  async readMask(item) {
    await this.settle(item);
    const { answer, verdicts } = item;
    const { width, height, components = [] } = answer;
    const keys = new Map(components.map((one) => [one.box.join(), keyOf(one)]));
    const map = readMap(await decodePicture(decodeBase64(answer.mask, "image/png")), answer);
    const regions = findRegions(map, width, height, { threshold: 0.5 }).map((one) => ({ ...one, key: keys.get(one.box.join()) }));
    const rejected = regions.filter(({ key }) => key && verdicts?.get(key) === "rejected");
    if (!rejected.length) return { map, regions, blob: decodeBase64(answer.mask, "image/png") };
    for (const { runs } of rejected) fillRuns(map, runs, 0);
    const context = createContext(width, height);
    context.putImageData(drawBinary(map, width, height, 1), 0, 0);
    return { map, regions, blob: await toBlob(context) };
  }

  /** Each region of an item as COCO's run lengths, by its key. */
  async describeShapes(item) {
    const { regions } = await this.readMask(item);
    return new Map(regions.map((region) => [region.key, encodeRuns(region, item.answer)]));
  }

  /** Resize the canvas for a picture. */
  resizeCanvas({ width, height }) {
    const size = fitSize(width, height, MAX_DRAWN_SIDE);
    Object.assign(this.part("canvas"), size);
    return size;
  }

  /** Settings of the mask; areas are pixels of the picture. */
  get settings() {
    const { min_area: minArea = 0, keep_largest: keepLargest = false } = this.options;
    return { threshold: this.part("threshold").valueAsNumber, minArea, keepLargest };
  }

  /** Settings of the drawing. */
  get drawingOptions() {
    return {
      opacity: this.part("opacity").valueAsNumber, outline: this.part("outline").checked,
      heat: this.part("heat").checked, colour: readColour(this, "--mask"),
    };
  }

  /** Whether the mask is still the one of the answer. */
  get isUnchanged() {
    return same(this.settings, this.current.settings);
  }

  redraw() {
    this.pendingFrame ??= requestAnimationFrame(() => {
      this.pendingFrame = null;
      const context = this.part("canvas").getContext("2d");
      const { width, height } = context.canvas;
      context.clearRect(0, 0, width, height);
      if (this.picture) context.drawImage(this.picture, 0, 0, width, height);
      if (!this.map) return;
      this.comparison?.redraw();
      const scale = (this.answer.width * this.answer.height) / (width * height);
      const region = thresholdMask(this.map, width, height, { ...this.settings, minArea: this.settings.minArea / scale });
      drawWiped(context, this.part("wipe").valueAsNumber, () => {
        if (this.highlight) this.drawHighlight(context, width / this.answer.width);
        blend(context, drawOverlay(this.map, region.mask, width, height, this.drawingOptions));
      });
      this.editor?.draw(context, width / this.answer.width);
      this.showMeasures({ ...measure(this.map, region.mask), regions: region.regions.length }, scale);
    });
  }

  /** Draw a frame around the region that is chosen in the list. */
  drawHighlight(context, scale) {
    const [x1, y1, x2, y2] = this.highlight.box.map((corner) => corner * scale);
    context.strokeStyle = "#fff";
    context.lineWidth = 3;
    context.strokeRect(x1 - 4, y1 - 4, x2 - x1 + 8, y2 - y1 + 8);
  }

  /** Show the numbers of the drawn mask: those of the answer where nothing was changed, else counted here. */
  showMeasures(counted, scale) {
    const { answer } = this;
    const { threshold } = this.settings;
    const served = { area: answer.area, mean: answer.mean_probability, highest: answer.max_probability, regions: answer.component_count };
    const { area, mean, highest, regions } = this.isUnchanged ? served : { ...counted, area: Math.round(counted.area * scale) };
    const share = (100 * area) / (answer.width * answer.height);
    this.setText("threshold-figure", threshold.toFixed(3));
    this.setText("opacity-figure", `${Math.round(this.drawingOptions.opacity * 100)} %`);
    this.setText("area", `${area.toLocaleString("en")} px`);
    this.setText("share", `${share.toFixed(share < 10 ? 2 : 1)} %`);
    this.setText("regions", String(regions));
    this.setText("highest", highest.toFixed(3));
    this.setText("mean", area ? mean.toFixed(3) : "–");
    const warning = answer.warnings?.[0];
    this.show(area === 0 || warning !== undefined, "verdict");
    this.setText("verdict", warning ?? `No region above ${threshold.toFixed(2)}. Highest probability: ${highest.toFixed(2)}.`);
    this.part("figures").classList.toggle("doubtful", warning !== undefined);
    this.part("canvas").setAttribute("aria-label", `${this.file.name} with its mask: ${share.toFixed(1)} percent of the picture`);
  }

  async saveMask() {
    const { map, width, height } = this.fullSize;
    const name = `${this.stem}.mask.png`;
    if (this.isUnchanged && this.answer.mask) return save(decodeBase64(this.answer.mask, "image/png"), name);
    const context = createContext(width, height);
    context.putImageData(drawBinary(thresholdMask(map, width, height, this.settings).mask, width, height), 0, 0);
    return save(await toBlob(context), name);
  }

  async saveAnswer() {
    await this.settle(this.current);
    saveJson(this.answer, `${this.stem}.json`);
  }

  async saveOverlay() {
    const { map, width, height } = this.fullSize;
    const context = createContext(width, height);
    if (this.picture) context.drawImage(this.picture, 0, 0, width, height);
    blend(context, drawOverlay(map, thresholdMask(map, width, height, this.settings).mask, width, height, this.drawingOptions));
    save(await toBlob(context), `${this.stem}.overlay.png`);
  }
}

const same = (first, second) => JSON.stringify(first) === JSON.stringify(second);

/** A region of the answer as a finding. */
function describeRegion(region, at) {
  const { area, box, by_hand, ...rest } = region;
  const figures = Object.fromEntries(Object.entries(rest).filter(([, value]) => typeof value === "number"));
  const row = { region: at + 1, area, x1: box[0], y1: box[1], x2: box[2], y2: box[3], ...figures, ...(by_hand && { by_hand }) };
  return { words: `Region ${at + 1}: ${area.toLocaleString("en")} px${by_hand ? `, ${by_hand} by hand` : ""}`, box, key: keyOf(region), row };
}

customElements.define("fovea-segment", Segment);
