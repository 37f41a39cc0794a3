/** Page of a road survey: photographs in; a map, figures, and a strip of pictures with boxes out. */

import { FolderForm } from "../../js/folder_form.js";
import { call } from "../../js/gateway.js";
import { save } from "../../js/save.js";
import "./survey_compare.js";

/** Milliseconds without another change of the merge radius before damage is counted again. */
const SETTLE_MS = 250;

class Survey extends FolderForm {
  static answerParts = ["nothing", "result"];

  connectedCallback() {
    super.connectedCallback();
    this.on("click", "keep", (_, button) => this.attempt(async () => save(await (await this.fetchAs(button.dataset.form)).blob(), button.dataset.name)));
    this.on("input", "filters", () => this.filter());
    this.on("input", "merge", () => this.mergeSoon());
    for (const type of ["pointerover", "focusin"]) this.addEventListener(type, ({ target }) => this.mark(target));
    this.on("click", "add-track", () => this.form.elements.gpx.click());
    this.on("click", "map", (event) => this.openMarker(event));
  }

  async request(signal) {
    const form = this.readForm();
    form.append("boxed", "true");
    await this.showFound(await this.submitForm(this.dataset.path, form, signal));
    const { observations, ...answer } = this.found;
    this.remember({ path: this.dataset.path, request: { merge_m: form.get("merge_m") }, answer: { ...answer, observations: observations.map(({ boxed, ...one }) => one) } }).catch(() => {});
  }

  showStored({ answer }) {
    return this.showFound(answer);
  }

  async showFound(found) {
    this.show(false, "nothing");
    this.found = found;
    this.showFigures();
    this.showPictures();
    this.show(true, "result");
    await this.attempt(() => this.showMap()); // without it there is all the rest
  }

  showFigures() {
    const { counts, counts_not_placed: lost, length_km, per_km, route, place_problems, failed, notes, observations, without_place: unplaced } = this.found;
    const isPlaced = observations.length > unplaced.length;
    this.setText("verdict", summarize(this.found));
    this.setText("damage", listCounts(counts) || (Object.keys(lost).length ? "none with a position" : "none found"));
    this.setText("not-placed", listCounts(lost) || "–");
    this.setText("road", length_km > 0 ? `${length_km.toFixed(2)} km` : "–");
    this.setText("per-km", per_km === null ? "–" : per_km.toFixed(1));
    this.setText("route", route ? `${Math.round(route.length_m)} m` : "–");
    this.part("left-out").replaceChildren(...[...place_problems, ...failed, ...notes].map(createItem));
    this.show(isPlaced, "map");
    this.show(!isPlaced, "no-track");
  }

  /** The pictures with boxes, which markers of the map link to; those without a position are a group of their own. */
  showPictures() {
    const shown = this.found.observations.map((one, number) => ({ ...one, number })).filter((one) => one.boxed);
    const labels = [...new Set(shown.flatMap((one) => one.detections.map(({ label }) => label)))].sort();
    const choice = this.part("label");
    choice.replaceChildren(choice.options[0], ...labels.map((label) => new Option(label)));
    const { without_place: unplaced, place_problems: problems } = this.found;
    const reasons = new Map(unplaced.map((name, at) => [name, problems[at].slice(name.length + 2)])); // also of those too far away
    for (const [name, isLost] of [["pictures", false], ["pictures-lost", true]]) {
      this.part(name).replaceChildren(...shown.filter((one) => reasons.has(one.name) === isLost).map((one) => this.createPicture(one, reasons.get(one.name))));
    }
    this.filter();
  }

  createPicture(one, problem) {
    const figure = this.cloneTemplate("picture");
    figure.id = `picture-${one.number}`;
    figure.dataset.labels = one.detections.map(({ label }) => label).join("|");
    figure.dataset.score = Math.max(0, ...one.detections.map(({ score }) => score ?? 1));
    figure.querySelector("img").src = `data:image/jpeg;base64,${one.boxed}`;
    figure.querySelector("img").alt = `${one.name} with boxes`;
    const place = problem ? `no position: ${problem}` : "";
    figure.querySelector("figcaption").textContent = [one.name, listScores(one.detections), place].filter(Boolean).join(" · ");
    return figure;
  }

  /** Show only pictures with damage of a class, above a score. */
  filter() {
    const [label, least] = [this.part("label").value, this.part("score").valueAsNumber];
    this.setText("score-figure", least.toFixed(2));
    const figures = [...this.querySelectorAll("figure[data-labels]")];
    for (const figure of figures) figure.hidden = (label && !figure.dataset.labels.split("|").includes(label)) || Number(figure.dataset.score) < least;
    for (const name of ["pictures", "pictures-lost"]) this.show(this.part(name).querySelector("figure:not([hidden])") !== null, `${name}-group`);
    for (const link of this.part("map").querySelectorAll("a")) link.toggleAttribute("hidden", document.getElementById(idOf(link))?.hidden ?? false);
    this.setText("shown", `${figures.filter((figure) => !figure.hidden).length} of ${figures.length} photos`);
  }

  openMarker(event) {
    const id = idOf(event.target.closest("a"));
    if (!id) return;
    event.preventDefault();
    const figure = document.getElementById(id);
    figure?.scrollIntoView({ block: "center" });
    figure?.focus();
  }

  async showMap() {
    const text = await (await this.fetchAs("image/svg+xml", "#picture-")).text();
    const drawn = new DOMParser().parseFromString(text, "image/svg+xml");
    this.part("map").replaceChildren(document.importNode(drawn.documentElement, true));
    this.filter();
  }

  /** Mark what a photo and the map show of the same damage. */
  mark(target) {
    const id = target.closest?.("figure[data-labels]")?.id ?? idOf(target.closest?.("a"));
    for (const link of this.part("map").querySelectorAll("a")) link.toggleAttribute("data-marked", Boolean(id) && idOf(link) === id);
    for (const figure of this.querySelectorAll("figure[data-labels]")) figure.toggleAttribute("data-marked", figure.id === id);
  }

  /** Count again once the radius has settled. */
  mergeSoon() {
    clearTimeout(this.merging);
    if (this.found && this.part("merge").checkValidity() && this.part("merge").value) this.merging = setTimeout(() => this.attempt(() => this.showMerged()), SETTLE_MS);
  }

  /** Merge the same observations again, within another radius. */
  async showMerged() {
    const [{ found }, { value }] = [this, this.part("merge")];
    const boxed = found.observations.map((one) => one.boxed);
    const merged = await (await this.fetchAs("application/json")).json();
    if (this.found !== found || this.part("merge").value !== value) return; // another radius, or survey, came meanwhile
    merged.observations?.forEach((one, at) => (one.boxed ??= boxed[at]));
    this.found = { ...this.found, ...merged, observations: merged.observations ?? this.found.observations };
    this.showFigures();
    await this.showMap();
  }

  /** The survey in a form; an archive gets the pictures, others at most links to those on this page. */
  async fetchAs(media, link) {
    const isArchive = media === "application/zip";
    const observations = this.found.observations.map((one, number) => ({
      ...one, boxed: isArchive ? one.boxed : null, picture: link && one.boxed ? `${link}${number}` : null,
    }));
    const json = { observations, merge_m: Number(this.form.elements.merge_m.value) };
    return call(this.dataset.path, { method: "POST", json, headers: { Accept: media } });
  }
}

/** The photo that a marker of the map links to, or null. */
function idOf(link) {
  const href = link?.getAttribute("href") ?? link?.getAttributeNS("http://www.w3.org/1999/xlink", "href");
  return href?.startsWith("#picture-") ? href.slice(1) : null;
}

/** What was found in one sentence, with what has no position. */
function summarize({ counts, counts_not_placed: lost, observations, without_place: { length: missing } }) {
  const all = {};
  for (const [label, count] of [...Object.entries(counts), ...Object.entries(lost)]) all[label] = (all[label] ?? 0) + count;
  const photos = `${observations.length} photo${observations.length === 1 ? "" : "s"}`;
  const places = missing === 0 ? "" : missing === observations.length ? "; none has a position, so there is no map" : `; ${missing} without a position`;
  return `${listCounts(all) || "No damage"} in ${photos}${places}.`;
}

const listCounts = (counts) => Object.entries(counts).map(([label, count]) => `${count} ${label}`).join(", ");

const listScores = (detections) => detections.map(({ label, score }) => (score === undefined ? label : `${label} ${score.toFixed(2)}`)).join(", ");

function createItem(text) {
  const item = document.createElement("li");
  item.textContent = text;
  return item;
}

customElements.define("fovea-survey", Survey);
