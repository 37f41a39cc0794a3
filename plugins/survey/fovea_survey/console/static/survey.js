/** Page of a road survey: photographs in, a map and figures out. */

import { FolderForm } from "/console/static/js/folder_form.js";
import { call } from "/console/static/js/gateway.js";
import { save } from "/console/static/js/save.js";

class Survey extends FolderForm {
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

customElements.define("fovea-survey", Survey);
