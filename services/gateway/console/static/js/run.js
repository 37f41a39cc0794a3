/** Generic page: runs any task from the form of its schema, and shows the answer in the generic result view. */

import { call } from "./gateway.js";
import { selectedModel, fileControls, fillForm, readFiles, readValues } from "./form.js";
import { RunForm } from "./run_form.js";
import { endingOf, save } from "./save.js";
import "./result_view.js";

export class RunTask extends RunForm {
  static answerParts = ["nothing", "answer", "download"];

  connectedCallback() {
    super.connectedCallback();
    this.example = {};
    this.on("click", "download", () => save(this.answerBlob, `${this.asked.replaceAll("/", "-")}.${endingOf(this.answerBlob)}`));
    this.addEventListener("fovea-model", () => (this.example = {}));
  }

  /** Fill the form with the model's example; values without a control (its pictures) are sent along. */
  async useExample() {
    const { model, ...request } = await this.fetchExample();
    this.example = fillForm(this.part("options"), request);
    for (const input of fileControls(this)) input.required &&= !(input.name in this.example);
    this.showError(null);
  }

  async showStored({ request, answer }) {
    if (answer === undefined) return;
    this.example = fillForm(this.part("options"), request ?? {});
    delete this.example.model;
    this.asked = request?.model ?? selectedModel(this);
    this.answerBlob = new Blob([JSON.stringify(answer)], { type: "application/json" });
    this.part("answer").drawJson(answer);
    this.show(false, "nothing");
    this.show(true, "download");
  }

  async describeRequest() {
    const form = this.part("options");
    return { path: this.dataset.path, json: { model: selectedModel(form), ...this.example, ...readValues(form), ...(await readFiles(form)) } };
  }

  async request(signal) {
    const { json, path } = await this.describeRequest();
    const response = await this.send(path, { json, signal });
    Object.assign(this, { asked: json.model, answerBlob: await response.clone().blob() });
    await this.part("answer").draw(response);
    this.show(true, "download");
    const answer = this.answerBlob.type.includes("json") ? JSON.parse(await this.answerBlob.text()) : null;
    this.remember({ path, request: json, answer, file: fileControls(this)[0]?.files[0] }).catch(() => {});
    await this.addPicture(json, signal);
  }

  /** Add the picture that the service draws of the answer, where the model can draw one. */
  async addPicture(json, signal) {
    const { picture } = this.dataset;
    if (!picture || this.runsAsJob) return;
    const drawn = await call(this.dataset.path, { method: "POST", json, headers: { Accept: picture }, signal });
    this.part("answer").addPicture(await drawn.blob());
  }
}

customElements.define("fovea-run", RunTask);
