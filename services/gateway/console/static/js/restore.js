/** A picture in, the same picture restored: before on the left of the slider's border, after on its right. */

import { blobOf, pictureType } from "./form.js";
import { decoded, fitted } from "./canvas.js";
import { PicturePart } from "./picture.js";
import { save } from "./save.js";

/** Longest side, in pixels, at which the page draws; the file to keep has the picture's own size. */
const DRAWN = 1280;

export class Restore extends PicturePart {
  static doing = "Restoring";
  static unseen = "this browser shows only the result";

  connectedCallback() {
    super.connectedCallback();
    this.on("input", "split", () => this.draw());
    this.on("click", "save-restored", () => save(this.restored, `${this.stem}.restored.${this.answer.format}`));
  }

  forget() {
    this.after = null;
  }

  begin() {
    this.draw();
  }

  async receive(answer, milliseconds) {
    this.answer = answer;
    this.restored = answer.restored && blobOf(answer.restored, pictureType(answer.restored));
    this.after = this.restored && (await decoded(this.restored));
    const { tiles, seconds, memory_mib: memory } = answer.estimate;
    this.say("size", `${answer.width} × ${answer.height}`);
    this.say("variant", answer.variant);
    this.say("changed", this.after ? `${(100 * answer.mean_change).toFixed(1)} %` : "–");
    this.say("tiles", this.after ? `${tiles}` : `${tiles}, about ${seconds.toFixed(1)} s and ${memory} MiB`);
    this.say("time", `${Math.round(milliseconds)} ms`);
    this.part("save-restored").disabled = !this.restored;
    this.show(true, "result");
    this.draw();
  }

  /** Before up to the border, after beyond it. */
  draw() {
    const shown = this.after ?? this.picture;
    if (!shown) return;
    const canvas = this.part("canvas");
    Object.assign(canvas, fitted(shown.width, shown.height, DRAWN));
    const context = canvas.getContext("2d");
    const border = this.after && this.picture ? Math.round(canvas.width * this.part("split").valueAsNumber) : canvas.width;
    context.drawImage(shown, 0, 0, canvas.width, canvas.height);
    if (!this.after || !this.picture || border === 0) return;
    const share = border / canvas.width;
    context.drawImage(this.picture, 0, 0, this.picture.width * share, this.picture.height, 0, 0, border, canvas.height);
    context.fillStyle = getComputedStyle(this).color;
    context.fillRect(border - 1, 0, 2, canvas.height);
  }
}
