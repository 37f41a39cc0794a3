/**
 * Base class of pages that send one picture at a time: choosing it, sending it, progress and errors.
 * A page only draws the answer.
 */

import { decodeBase64, selectedModel, readValues } from "./form.js";
import { call } from "./gateway.js";
import { decodePicture } from "./canvas.js";
import { jobNote, submit } from "./submit.js";
import { CustomElement } from "./custom_element.js";

export class PicturePage extends CustomElement {
  /** Text of the progress bar. */
  static progressLabel = "";

  /** Note beside a picture that the browser can't show. */
  static hiddenNote = "";

  connectedCallback() {
    this.addEventListener("fovea-picture", (event) => this.setPicture(event.detail));
    this.on("submit", "options", (event) => {
      event.preventDefault();
      this.run();
    });
    this.on("click", "choose", () => this.part("file").click());
    this.on("click", "example", () => this.useExample());
    this.on("click", "stop", () => this.running?.abort());
  }

  /** Show a picture and send it. */
  async setPicture(file) {
    this.file = file;
    this.stem = file.name.replace(/\.[^.]*$/, "") || "picture";
    this.clearAnswer();
    this.picture = await decodePicture(file);
    const size = this.picture ? `, ${this.picture.width} × ${this.picture.height}` : ` (${this.constructor.hiddenNote})`;
    this.setText("name", file.name + size);
    this.show(false, "drop", "result");
    this.show(true, "viewer");
    this.part("go").disabled = false;
    this.showPicture();
    await this.run();
  }

  async useExample() {
    try {
      const request = await (await call(`/v1/models/${selectedModel(this)}/example`)).json();
      const blob = decodeBase64(request.image);
      await this.setPicture(new File([blob], "example", { type: blob.type }));
    } catch (problem) {
      this.showError(problem);
    }
  }

  async run() {
    if (!this.file) return;
    this.running?.abort();
    const running = (this.running = new AbortController());
    this.setBusy(true);
    const started = performance.now();
    try {
      const response = await submit(this.dataset.path, {
        body: this.buildBody(), signal: running.signal, asJob: this.part("as-job").checked,
        onJob: (job) => this.showProgress(job.status === "queued" ? undefined : job.progress, jobNote(job)),
      });
      await this.receive(await response.json(), performance.now() - started);
    } catch (problem) {
      this.showError(problem);
    } finally {
      if (this.running === running) this.setBusy(false);
    }
  }

  /** The request as multipart: the picture's bytes as they are. */
  buildBody() {
    const body = new FormData();
    body.append("model", selectedModel(this));
    for (const [name, value] of Object.entries(this.requestOptions)) {
      body.append(name, typeof value === "string" ? value : JSON.stringify(value));
    }
    body.append("image", this.file, this.file.name);
    return body;
  }

  /** The options of the form. */
  get options() {
    return readValues(this.part("options"));
  }

  /** The options of a request. */
  get requestOptions() {
    return this.options;
  }

  /** Drop the last answer. */
  clearAnswer() {}

  /** Show the picture before there is an answer. */
  showPicture() {}

  /** Show an answer that took so many milliseconds. */
  async receive(answer, milliseconds) {}

  setBusy(on) {
    if (on) this.showError(null);
    this.showProgress(on ? undefined : null, this.constructor.progressLabel);
    this.classList.toggle("busy", on);
    this.show(on, "stop");
    this.show(!on, "go");
  }
}
