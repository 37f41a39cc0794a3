/**
 * A picture in, the mask on it. The model is asked once; threshold and overlay then move on its probability map here.
 */

import { binary, inside, overlay, tally } from "./mask.js";
import { blend, blank, colourOf, decoded, fileOf, fitted, mapOf } from "./canvas.js";
import { blobOf } from "./form.js";
import { PicturePart } from "./picture.js";
import { save, saveJson } from "./save.js";

/** Longest side, in pixels, at which the page draws; files to keep are made at the picture's own size. */
const DRAWN = 1280;

/** Forms of the answer that this page shows or keeps. */
const INCLUDE = ["mask", "contours", "probability"];

export class Segment extends PicturePart {
  static doing = "Segmenting";
  static unseen = "this browser shows only its mask";

  connectedCallback() {
    super.connectedCallback();
    for (const name of ["threshold", "opacity", "outline", "heat", "options"]) this.on("input", name, () => this.redraw());
    this.on("click", "save-mask", () => this.saveMask());
    this.on("click", "save-overlay", () => this.saveOverlay());
    this.on("click", "save-json", () => saveJson(this.answer, `${this.stem}.json`));
    this.addEventListener("fovea-model", () => this.file && this.run());
  }

  forget() {
    this.answer = this.map = null;
  }

  begin() {
    if (this.picture) this.canvas(this.picture);
    this.redraw();
  }

  /** The threshold is chosen on the picture, not in the form. */
  get asking() {
    return { ...this.options, threshold: this.part("threshold").valueAsNumber, include: INCLUDE };
  }

  async receive(answer, milliseconds) {
    this.answer = answer;
    this.asked = this.settings;
    const probability = await decoded(blobOf(answer.probability, "image/png"));
    this.whole = { map: mapOf(probability, answer), width: answer.width, height: answer.height };
    this.map = mapOf(probability, this.canvas(answer));
    this.show(true, "result");
    this.say("time", `${Math.round(milliseconds)} ms`);
    this.redraw();
  }

  /** Give the canvas the size at which a picture is drawn. */
  canvas({ width, height }) {
    const size = fitted(width, height, DRAWN);
    Object.assign(this.part("canvas"), size);
    return size;
  }

  /** What decides on the mask; areas are pixels of the picture. */
  get settings() {
    const { min_area: minArea = 0, keep_largest: keepLargest = false } = this.options;
    return { threshold: this.part("threshold").valueAsNumber, minArea, keepLargest };
  }

  /** What decides on how it is drawn. */
  get look() {
    return {
      opacity: this.part("opacity").valueAsNumber, outline: this.part("outline").checked,
      heat: this.part("heat").checked, colour: colourOf(this, "--mask"),
    };
  }

  /** Whether the mask is still the one that the model answered with. */
  get untouched() {
    return JSON.stringify(this.settings) === JSON.stringify(this.asked);
  }

  redraw() {
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = null;
      const context = this.part("canvas").getContext("2d");
      const { width, height } = context.canvas;
      context.clearRect(0, 0, width, height);
      if (this.picture) context.drawImage(this.picture, 0, 0, width, height);
      if (!this.map) return;
      const scale = (this.answer.width * this.answer.height) / (width * height);
      const found = inside(this.map, width, height, { ...this.settings, minArea: this.settings.minArea / scale });
      blend(context, overlay(this.map, found.mask, width, height, this.look));
      this.tell({ ...tally(this.map, found.mask), regions: found.regions.length }, scale);
    });
  }

  /** Numbers for the mask as it is drawn: the model's own where nothing was moved, counted here where something was. */
  tell(counted, scale) {
    const { answer } = this;
    const { threshold } = this.settings;
    const own = { area: answer.area, mean: answer.mean_probability, highest: answer.max_probability, regions: answer.component_count };
    const { area, mean, highest, regions } = this.untouched ? own : { ...counted, area: Math.round(counted.area * scale) };
    const share = (100 * area) / (answer.width * answer.height);
    this.say("threshold-figure", threshold.toFixed(3));
    this.say("opacity-figure", `${Math.round(this.look.opacity * 100)} %`);
    this.say("area", `${area.toLocaleString()} px`);
    this.say("share", `${share.toFixed(share < 10 ? 2 : 1)} %`);
    this.say("regions", String(regions));
    this.say("highest", highest.toFixed(3));
    this.say("mean", area ? mean.toFixed(3) : "–");
    const warning = answer.warnings?.[0];
    this.show(area === 0 || warning !== undefined, "verdict");
    this.say("verdict", warning ?? `Nothing here reaches a probability of ${threshold.toFixed(2)}. The highest is ${highest.toFixed(2)}.`);
    this.part("canvas").setAttribute("aria-label", `${this.file.name} with its mask: ${share.toFixed(1)} percent of the picture`);
  }

  async saveMask() {
    const { map, width, height } = this.whole;
    const name = `${this.stem}.mask.png`;
    if (this.untouched) return save(blobOf(this.answer.mask, "image/png"), name);
    const context = blank(width, height);
    context.putImageData(binary(inside(map, width, height, this.settings).mask, width, height), 0, 0);
    return save(await fileOf(context), name);
  }

  async saveOverlay() {
    const { map, width, height } = this.whole;
    const context = blank(width, height);
    if (this.picture) context.drawImage(this.picture, 0, 0, width, height);
    blend(context, overlay(map, inside(map, width, height, this.settings).mask, width, height, this.look));
    save(await fileOf(context), `${this.stem}.overlay.png`);
  }
}
