/** Base of pages that take many files at once; such pages come from plug-ins. */

import { CustomElement } from "./custom_element.js";
import { jobNote, submit } from "./submit.js";

/** One form of files, one request at a time, run as a job. */
export class FolderForm extends CustomElement {
  connectedCallback() {
    this.on("submit", "form", (event) => {
      event.preventDefault();
      this.run();
    });
    this.on("click", "stop", () => this.running?.abort());
  }

  async run() {
    this.running = new AbortController();
    this.showError(null);
    this.show(false, "nothing", "result", "go");
    this.show(true, "stop");
    this.showProgress(undefined);
    try {
      await this.request(this.readForm(), this.running.signal);
      this.show(true, "result");
    } catch (problem) {
      this.showError(problem);
    }
    this.showProgress(null);
    this.show(false, "stop");
    this.show(true, "go");
  }

  /** The form's values, without empty ones and without files that nobody chose. */
  readForm() {
    const form = new FormData();
    for (const [name, value] of new FormData(this.part("form"))) {
      if (typeof value === "string" ? value.trim() !== "" : value.size > 0) form.append(name, value);
    }
    return form;
  }

  async submitForm(path, body, signal) {
    const onJob = (job) => this.showProgress(job.status === "queued" ? undefined : job.progress, jobNote(job));
    return (await submit(path, { body, signal, asJob: true, onJob })).json();
  }
}
