/** Pages that take many files at once: a road survey, and a DICOM study. */

import { call } from "./gateway.js";
import { CustomElement } from "./custom_element.js";
import { jobNote, submit } from "./submit.js";
import { save } from "./save.js";

/** One form of files, one request at a time, run as a job. */
class FolderForm extends CustomElement {
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

export class Survey extends FolderForm {
  connectedCallback() {
    super.connectedCallback();
    this.on("click", "keep", async (_, button) => save(await this.fetchAs(button.dataset.form), button.dataset.name));
  }

  async request(form, signal) {
    this.found = await this.submitForm("/v1/detect/survey", form, signal);
    const { counts, length_km, per_km, route, without_place, failed } = this.found;
    this.setText("damage", Object.entries(counts).map(([label, count]) => `${label} ${count}`).join(", ") || "none found");
    this.setText("road", `${length_km.toFixed(2)} km`);
    this.setText("per-km", per_km === null ? "–" : per_km.toFixed(1));
    this.setText("route", route ? `${Math.round(route.length_m)} m` : "–");
    this.setText("left-out", [without_place.length && `Without a place: ${without_place.join(", ")}`, ...failed].filter(Boolean).join(" · "));
    URL.revokeObjectURL(this.part("map").src);
    this.part("map").src = URL.createObjectURL(await this.fetchAs("image/svg+xml"));
  }

  async fetchAs(media) {
    const json = { observations: this.found.observations, merge_m: Number(this.part("form").elements.merge_m.value) };
    return (await call("/v1/detect/survey", { method: "POST", json, headers: { Accept: media } })).blob();
  }
}

export class Study extends FolderForm {
  async request(form, signal) {
    form.append("include", "segmentation,report,strip");
    const { series } = await this.submitForm("/v1/segment/dicom", form, signal);
    this.part("result").replaceChildren(...series.map((one) => this.createSeries(one)));
  }

  createSeries(one) {
    const section = this.cloneTemplate("series");
    const [title, strip, facts, warnings, actions] = section.children;
    const frames = one.instances.flatMap((instance) => instance.frames);
    const found = frames.filter((frame) => !frame.empty);
    title.textContent = `Series ${one.series}`;
    strip.src = `data:image/jpeg;base64,${one.strip}`;
    const areas = found.map((frame) => (frame.area_mm2 === null ? `${frame.area} px` : `${frame.area_mm2.toFixed(1)} mm²`));
    facts.textContent = found.length ? `Found in ${found.length} of ${frames.length} frames: ${areas.slice(0, 8).join(", ")}` : `Nothing found in ${frames.length} frames.`;
    warnings.textContent = one.warnings.join(" ");
    for (const [name, label, suffix] of [["segmentation", "Segmentation", "seg.dcm"], ["report", "Report", "sr.dcm"]]) {
      if (one[name]) actions.append(this.createButton(label, one[name], `${one.series}.${suffix}`));
    }
    return section;
  }

  createButton(label, base64, name) {
    const button = this.cloneTemplate("keep");
    button.textContent = label;
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    button.addEventListener("click", () => save(new Blob([bytes], { type: "application/dicom" }), name));
    return button;
  }
}
