/** Runs any task from the form that the server drew from its schema. Knows no model. */

import { call } from "./gateway.js";
import { chosenModel, fileControls, files, fill, values } from "./form.js";
import { jobNote, submit } from "./submit.js";
import { Part } from "./element.js";
import { save } from "./save.js";

export class RunTask extends Part {
  connectedCallback() {
    this.example = {};
    this.on("submit", "options", (event) => {
      event.preventDefault();
      this.run();
    });
    this.on("click", "stop", () => this.running?.abort());
    this.on("click", "example", () => this.useExample());
    this.on("click", "download", () => save(this.kept, `${chosenModel(this).replaceAll("/", "-")}.${this.kept.type.includes("json") ? "json" : "bin"}`));
    this.addEventListener("fovea-model", () => (this.example = {}));
  }

  /** Fill the form with the model's example; what has no control (its pictures) is sent along. */
  async useExample() {
    try {
      const request = await (await call(`/v1/models/${chosenModel(this)}/example`)).json();
      delete request.model;
      this.example = fill(this.part("options"), request);
      for (const input of fileControls(this)) input.required &&= !(input.name in this.example);
      this.fault(null);
    } catch (problem) {
      this.fault(problem);
    }
  }

  async run() {
    const form = this.part("options");
    this.running = new AbortController();
    this.busy(true);
    try {
      const json = { ...this.example, ...values(form), ...(await files(form)), model: chosenModel(form) };
      const response = await submit(this.dataset.path, {
        json, signal: this.running.signal, asJob: this.part("as-job").checked,
        onJob: (job) => this.progress(job.status === "queued" ? undefined : job.progress, jobNote(job)),
      });
      this.kept = await response.clone().blob();
      await this.part("answer").draw(response);
      await this.picture(json);
      this.show(true, "download");
    } catch (problem) {
      this.fault(problem);
    } finally {
      this.busy(false);
    }
  }

  /** The answer drawn by the service, above its figures, where the model can draw. */
  async picture(json) {
    const { picture } = this.dataset;
    if (!picture || this.part("as-job").checked) return;
    const drawn = await call(this.dataset.path, { method: "POST", json, headers: { Accept: picture }, signal: this.running.signal });
    this.part("answer").above(await drawn.blob());
  }

  busy(on) {
    if (on) {
      this.fault(null);
      this.show(false, "nothing", "answer", "download");
    }
    this.progress(on ? undefined : null, "Working");
    this.show(on, "stop");
    this.show(!on, "go");
  }
}
