/** A picture in, the same picture restored: before on the left of the slider's border, after on its right. */

import { blobOf, chosenModel, pictureType, values } from "./form.js";
import { decoded, fitted } from "./canvas.js";
import { call } from "./gateway.js";
import { jobNote, submit } from "./submit.js";
import { Part } from "./element.js";
import { save } from "./save.js";

/** Longest side, in pixels, at which the page draws; the file to keep has the picture's own size. */
const DRAWN = 1280;

export class Restore extends Part {
  connectedCallback() {
    this.addEventListener("fovea-picture", (event) => this.take(event.detail));
    this.on("submit", "options", (event) => {
      event.preventDefault();
      this.run();
    });
    this.on("click", "choose", () => this.part("file").click());
    this.on("click", "example", () => this.useExample());
    this.on("click", "stop", () => this.running?.abort());
    this.on("input", "split", () => this.draw());
    this.on("click", "save-restored", () => save(this.restored, `${this.stem}.restored.${this.answer.format}`));
  }

  /** Show a picture and restore it. */
  async take(file) {
    this.file = file;
    this.stem = file.name.replace(/\.[^.]*$/, "") || "picture";
    this.after = null;
    this.before = await decoded(file);
    this.say("name", this.before ? `${file.name}, ${this.before.width} × ${this.before.height}` : `${file.name} (this browser shows only the result)`);
    this.show(false, "drop", "result");
    this.show(true, "viewer");
    this.part("go").disabled = false;
    this.draw();
    await this.run();
  }

  async useExample() {
    try {
      const request = await (await call(`/v1/models/${chosenModel(this)}/example`)).json();
      const blob = blobOf(request.image);
      await this.take(new File([blob], "example", { type: blob.type }));
    } catch (problem) {
      this.fault(problem);
    }
  }

  async run() {
    if (!this.file) return;
    this.running?.abort();
    const running = (this.running = new AbortController());
    this.busy(true);
    const started = performance.now();
    try {
      const response = await submit(this.dataset.path, {
        body: this.body(), signal: running.signal, asJob: this.part("as-job").checked,
        onJob: (job) => this.progress(job.status === "queued" ? undefined : job.progress, jobNote(job)),
      });
      await this.receive(await response.json(), performance.now() - started);
    } catch (problem) {
      this.fault(problem);
    } finally {
      if (this.running === running) this.busy(false);
    }
  }

  /** The request as multipart: the picture's bytes as they are. */
  body() {
    const body = new FormData();
    body.append("model", chosenModel(this));
    for (const [name, value] of Object.entries(values(this.part("options")))) {
      body.append(name, typeof value === "string" ? value : JSON.stringify(value));
    }
    body.append("image", this.file, this.file.name);
    return body;
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
    const shown = this.after ?? this.before;
    if (!shown) return;
    const canvas = this.part("canvas");
    Object.assign(canvas, fitted(shown.width, shown.height, DRAWN));
    const context = canvas.getContext("2d");
    const border = this.after && this.before ? Math.round(canvas.width * this.part("split").valueAsNumber) : canvas.width;
    context.drawImage(shown, 0, 0, canvas.width, canvas.height);
    if (!this.after || !this.before || border === 0) return;
    const share = border / canvas.width;
    context.drawImage(this.before, 0, 0, this.before.width * share, this.before.height, 0, 0, border, canvas.height);
    context.fillStyle = getComputedStyle(this).color;
    context.fillRect(border - 1, 0, 2, canvas.height);
  }

  busy(on) {
    if (on) this.fault(null);
    this.progress(on ? undefined : null, "Restoring");
    this.classList.toggle("busy", on);
    this.show(on, "stop");
    this.show(!on, "go");
  }
}
