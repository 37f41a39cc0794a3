/** Restoration page: the picture before on the left of the slider's border, after on its right. */

import { decodeBase64, detectPictureType } from "./form.js";
import { decodePicture, fitSize } from "./canvas.js";
import { stemOf } from "./export_all.js";
import { PicturePage } from "./picture.js";
import { save } from "./save.js";

/** Longest side, in pixels, at which the page draws; the download has the picture's own size. */
const MAX_DRAWN_SIDE = 1280;

class Restore extends PicturePage {
  static progressLabel = "Restoring";
  static hiddenNote = "this browser shows only the result";

  connectedCallback() {
    super.connectedCallback();
    this.on("input", "split", () => this.draw());
    this.on("click", "save-restored", () => save(this.restored, `${this.stem}.restored.${this.answer.format}`));
  }

  clearAnswer() {
    this.restoredPicture = null;
  }

  async prepare(answer) {
    const picture = await decodePicture(decodeBase64(answer.restored, detectPictureType(answer.restored)));
    return { ...(await super.prepare(answer)), picture };
  }

  drawCompared(context, { picture }) {
    context.drawImage(picture, 0, 0, context.canvas.width, context.canvas.height);
  }

  async describeFiles(item) {
    const { restored, format } = item.answer;
    return restored ? [{ name: `restored/${stemOf(this, item)}.${format}`, blob: decodeBase64(restored, detectPictureType(restored)) }] : [];
  }

  showPicture() {
    this.draw();
  }

  async receive(answer, milliseconds) {
    this.answer = answer;
    this.restored = answer.restored && decodeBase64(answer.restored, detectPictureType(answer.restored));
    const item = this.current;
    const picture = this.restored && (await decodePicture(this.restored));
    if (this.current !== item || this.answer !== answer) return; // another picture was chosen meanwhile
    this.restoredPicture = picture;
    const { tiles, seconds, memory_mib: memory } = answer.estimate;
    this.setText("size", `${answer.width} × ${answer.height}`);
    this.setText("variant", answer.variant);
    this.setText("changed", this.restoredPicture ? `${(100 * answer.mean_change).toFixed(1)} %` : "–");
    this.setText("tiles", this.restoredPicture ? `${tiles}` : `${tiles}, about ${seconds.toFixed(1)} s and ${memory} MiB`);
    this.setText("time", `${Math.round(milliseconds)} ms`);
    this.part("save-restored").disabled = !this.restored;
    this.show(true, "result");
    this.draw();
  }

  /** Before up to the border, after beyond it. */
  draw() {
    const source = this.restoredPicture ?? this.picture;
    if (!source) return;
    const canvas = this.part("canvas");
    Object.assign(canvas, fitSize(source.width, source.height, MAX_DRAWN_SIDE));
    const context = canvas.getContext("2d");
    const border = this.restoredPicture && this.picture ? Math.round(canvas.width * this.part("split").valueAsNumber) : canvas.width;
    context.drawImage(source, 0, 0, canvas.width, canvas.height);
    if (!this.restoredPicture || !this.picture || border === 0) return;
    const share = border / canvas.width;
    context.drawImage(this.picture, 0, 0, this.picture.width * share, this.picture.height, 0, 0, border, canvas.height);
    context.fillStyle = getComputedStyle(this).color;
    context.fillRect(border - 1, 0, 2, canvas.height);
  }
}

customElements.define("fovea-restore", Restore);
