/** Page of a DICOM study: files in, strips of series and derived objects out. */

import { FolderForm } from "../../js/folder_form.js";
import { save } from "../../js/save.js";

class Study extends FolderForm {
  static answerParts = ["nothing", "result"];

  async request(signal) {
    const form = this.readForm();
    form.append("include", "segmentation,report,strip");
    const answer = await this.submitForm(this.dataset.path, form, signal);
    this.showStored({ answer });
    this.remember({ path: this.dataset.path, request: Object.fromEntries(form), answer }).catch(() => {});
  }

  showStored({ answer: { series, skipped } }) {
    this.setText("skipped", skipped.length ? `Skipped: ${skipped.join(" · ")}` : "");
    this.part("result").replaceChildren(...series.map((one) => this.createSeries(one)));
    this.show(false, "nothing");
    this.show(true, "result");
  }

  createSeries(one) {
    const section = this.cloneTemplate("series");
    const [title, strip, facts, warnings, actions] = section.children;
    const frames = one.instances.flatMap((instance) => instance.frames);
    const found = frames.filter((frame) => !frame.empty);
    const [first, ...others] = one.instances.map((instance) => instance.file);
    title.textContent = `Series ${one.series} (${first}${others.length ? ` and ${others.length} more files` : ""})`;
    if (one.strip) strip.src = `data:image/jpeg;base64,${one.strip}`;
    const areas = found.map((frame) => (frame.area_mm2 === null ? `${frame.area} px` : `${frame.area_mm2.toFixed(1)} mm²`));
    const all = frames.length === 1 ? "1 frame" : `${frames.length} frames`;
    facts.textContent = found.length ? `Found in ${found.length} of ${all}: ${areas.slice(0, 8).join(", ")}` : `Nothing found in ${all}.`;
    warnings.textContent = [...new Set([...one.warnings, ...frames.flatMap((frame) => frame.warnings)])].join(" ");
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

customElements.define("fovea-study", Study);
