/** Base of pages that take many files at once, one request at a time, as a job; such pages come from plug-ins. */

import { RunForm } from "./run_form.js";

export class FolderForm extends RunForm {
  /** The form's values, without empty ones and without files that nobody chose. */
  readForm() {
    const form = new FormData();
    for (const [name, value] of new FormData(this.form)) {
      if (typeof value === "string" ? value.trim() !== "" : value.size > 0) form.append(name, value);
    }
    return form;
  }

  async describeRequest() {
    return { path: this.dataset.path, body: this.readForm() };
  }

  async submitForm(path, body, signal) {
    return (await this.send(path, { body, signal, asJob: true })).json();
  }
}
