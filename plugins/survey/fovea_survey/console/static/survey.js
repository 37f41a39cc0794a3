/** Page of a road survey: photographs in; a map, figures and pictures with boxes out. */

import { FolderForm } from "/console/static/js/folder_form.js";
import { call } from "/console/static/js/gateway.js";
import { save } from "/console/static/js/save.js";

const PATH = "/v1/detect/survey";

class Survey extends FolderForm {
  connectedCallback() {
    super.connectedCallback();
    this.on("click", "keep", async (_, button) => save(await (await this.fetchAs(button.dataset.form)).blob(), button.dataset.name));
  }

  async request(form, signal) {
    form.append("boxed", "true");
    this.found = await this.submitForm(PATH, form, signal);
    const { counts, counts_not_placed: lost, length_km, per_km, route, place_problems, failed, notes } = this.found;
    const isLost = Object.keys(lost).length > 0;
    this.setText("damage", listCounts(counts) || (isLost ? "none with a place" : "none found"));
    this.setText("not-placed", listCounts(lost) || "–");
    this.setText("road", `${length_km.toFixed(2)} km`);
    this.setText("per-km", per_km === null ? "–" : per_km.toFixed(1));
    this.setText("route", route ? `${Math.round(route.length_m)} m` : "–");
    this.part("left-out").replaceChildren(...[...place_problems, ...failed, ...notes].map(createItem));
    this.showPictures();
    const drawn = new DOMParser().parseFromString(await (await this.fetchAs("image/svg+xml", "#picture-")).text(), "image/svg+xml");
    this.part("map").replaceChildren(document.importNode(drawn.documentElement, true));
  }

  /** The pictures with boxes, which markers of the map link to. */
  showPictures() {
    const shown = this.found.observations.map((one, number) => ({ ...one, number })).filter((one) => one.boxed);
    this.part("pictures").replaceChildren(...shown.map((one) => {
      const figure = this.cloneTemplate("picture");
      figure.id = `picture-${one.number}`;
      figure.querySelector("img").src = `data:image/jpeg;base64,${one.boxed}`;
      figure.querySelector("img").alt = `${one.name} with boxes`;
      const place = one.place_problem ? `not placed: ${one.place_problem}` : "";
      figure.querySelector("figcaption").textContent = [one.name, one.detections.map((seen) => seen.label).join(", "), place].filter(Boolean).join(" · ");
      return figure;
    }));
  }

  /** The survey in a form; an archive gets the pictures, others at most links to those on this page. */
  async fetchAs(media, link) {
    const isArchive = media === "application/zip";
    const observations = this.found.observations.map((one, number) => ({
      ...one, boxed: isArchive ? one.boxed : null, picture: link && one.boxed ? `${link}${number}` : null,
    }));
    const json = { observations, merge_m: Number(this.part("form").elements.merge_m.value) };
    return call(PATH, { method: "POST", json, headers: { Accept: media } });
  }
}

function listCounts(counts) {
  return Object.entries(counts).map(([label, count]) => `${label} ${count}`).join(", ");
}

function createItem(text) {
  const item = document.createElement("li");
  item.textContent = text;
  return item;
}

customElements.define("fovea-survey", Survey);
