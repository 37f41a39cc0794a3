/** Generic page: runs any task from the form of its schema, and shows the answer in the generic result view. */

import { call } from "./gateway.js";
import { selectedModel, fileControls, fillForm, readFiles, readValues } from "./form.js";
import { jobNote, submit } from "./submit.js";
import { CustomElement } from "./custom_element.js";
import { save } from "./save.js";

export class RunTask extends CustomElement {
  connectedCallback() {
    this.example = {};
    this.on("submit", "options", (event) => {
      event.preventDefault();
      this.run();
    });
    this.on("click", "stop", () => this.running?.abort());
    this.on("click", "example", () => this.useExample());
    this.on("click", "download", () => save(this.answerBlob, `${selectedModel(this).replaceAll("/", "-")}.${this.answerBlob.type.includes("json") ? "json" : "bin"}`));
    this.addEventListener("fovea-model", () => (this.example = {}));
  }

  /** Fill the form with the model's example; values without a control (its pictures) are sent along. */
  async useExample() {
    try {
      const request = await (await call(`/v1/models/${selectedModel(this)}/example`)).json();
      delete request.model;
      this.example = fillForm(this.part("options"), request);
      for (const input of fileControls(this)) input.required &&= !(input.name in this.example);
      this.showError(null);
    } catch (problem) {
      this.showError(problem);
    }
  }

  async run() {
    const form = this.part("options");
    this.running = new AbortController();
    this.setBusy(true);
    try {
      const json = { ...this.example, ...readValues(form), ...(await readFiles(form)), model: selectedModel(form) };
      const response = await submit(this.dataset.path, {
        json, signal: this.running.signal, asJob: this.part("as-job").checked,
        onJob: (job) => this.showProgress(job.status === "queued" ? undefined : job.progress, jobNote(job)),
      });
      this.answerBlob = await response.clone().blob();
      await this.part("answer").draw(response);
      await this.addPicture(json);
      this.show(true, "download");
    } catch (problem) {
      this.showError(problem);
    } finally {
      this.setBusy(false);
    }
  }

  /** Add the picture that the service draws of the answer, where the model can draw one. */
  async addPicture(json) {
    const { picture } = this.dataset;
    if (!picture || this.part("as-job").checked) return;
    const drawn = await call(this.dataset.path, { method: "POST", json, headers: { Accept: picture }, signal: this.running.signal });
    this.part("answer").addPicture(await drawn.blob());
  }

  setBusy(on) {
    if (on) {
      this.showError(null);
      this.show(false, "nothing", "answer", "download");
    }
    this.showProgress(on ? undefined : null, "Working");
    this.show(on, "stop");
    this.show(!on, "go");
  }
}
