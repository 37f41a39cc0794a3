/**
 * A page that sends one picture at a time: choosing it, sending it, waiting, and saying what went wrong.
 * What an answer looks like is the business of the page itself.
 */

import { blobOf, chosenModel, values } from "./form.js";
import { call } from "./gateway.js";
import { decoded } from "./canvas.js";
import { jobNote, submit } from "./submit.js";
import { Part } from "./element.js";

export class PicturePart extends Part {
  /** What the progress bar says. */
  static doing = "";

  /** What is said of a picture that the browser can't show. */
  static unseen = "";

  connectedCallback() {
    this.addEventListener("fovea-picture", (event) => this.take(event.detail));
    this.on("submit", "options", (event) => {
      event.preventDefault();
      this.run();
    });
    this.on("click", "choose", () => this.part("file").click());
    this.on("click", "example", () => this.useExample());
    this.on("click", "stop", () => this.running?.abort());
  }

  /** Show a picture and send it. */
  async take(file) {
    this.file = file;
    this.stem = file.name.replace(/\.[^.]*$/, "") || "picture";
    this.forget();
    this.picture = await decoded(file);
    const size = this.picture ? `, ${this.picture.width} × ${this.picture.height}` : ` (${this.constructor.unseen})`;
    this.say("name", file.name + size);
    this.show(false, "drop", "result");
    this.show(true, "viewer");
    this.part("go").disabled = false;
    this.begin();
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
    for (const [name, value] of Object.entries(this.asking)) {
      body.append(name, typeof value === "string" ? value : JSON.stringify(value));
    }
    body.append("image", this.file, this.file.name);
    return body;
  }

  /** The options of the form. */
  get options() {
    return values(this.part("options"));
  }

  /** What is asked beside the picture. */
  get asking() {
    return this.options;
  }

  /** Let go of the last answer. */
  forget() {}

  /** Draw the picture before there is an answer. */
  begin() {}

  /** Show an answer that took so many milliseconds. */
  async receive(answer, milliseconds) {}

  busy(on) {
    if (on) this.fault(null);
    this.progress(on ? undefined : null, this.constructor.doing);
    this.classList.toggle("busy", on);
    this.show(on, "stop");
    this.show(!on, "go");
  }
}
