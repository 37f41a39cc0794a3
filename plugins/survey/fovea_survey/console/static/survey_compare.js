/**
 * Two surveys of one road: which damage is new, gone, worse, better or unchanged. Damage of one class within a radius is
 * the same; nearest pairs are matched first. Surveys are runs of this browser or tenant, or files that a survey wrote.
 */

import { createNode, CustomElement } from "../../js/custom_element.js";
import { writeCsv } from "../../js/export_all.js";
import { createSvg } from "../../js/plot.js";
import { list, load } from "../../js/runs.js";
import { save } from "../../js/save.js";

const RADIUS_M = 6_371_008.8;
const STATES = ["new", "worse", "unchanged", "better", "gone"];
const SEVERITIES = ["low", "medium", "high"];
const MAP = { width: 720, height: 440, margin: 40 };
const FILE = "file";

/** Growth of a damage's share of the picture from which it is worse, where no severity is known. */
const GROWTH = 1.5;

class SurveyCompare extends CustomElement {
  connectedCallback() {
    this.surveys = {};
    for (const side of ["earlier", "later"]) {
      this.on("change", side, () => this.attempt(() => this.choose(side)));
      this.on("change", `${side}-file`, () => this.attempt(() => this.choose(side)));
    }
    for (const name of ["radius", "state", "class"]) this.on("input", name, () => this.draw());
    this.on("click", "save", () => save(new Blob([writeCsv(this.shown.map(toRow))], { type: "text/csv" }), "surveys-compared.csv"));
    for (const type of ["pointerover", "focusin"]) this.addEventListener(type, ({ target }) => this.mark(target.closest("[data-change]")?.dataset.change));
    document.addEventListener("fovea-run-stored", () => this.attempt(() => this.listRuns()));
    this.attempt(() => this.listRuns());
  }

  /** Offer the surveys among the stored runs. */
  async listRuns() {
    const runs = (await list()).filter(({ page }) => page === "/console/survey");
    for (const side of ["earlier", "later"]) {
      const choice = this.part(side);
      const { value } = choice;
      const entries = runs.map(({ id, time, input }) => new Option([new Date(time).toLocaleString([], { dateStyle: "medium", timeStyle: "short" }), input].filter(Boolean).join(" · "), id));
      choice.replaceChildren(new Option("Choose one", ""), new Option("A file …", FILE), ...entries);
      choice.value = value;
    }
  }

  /** Use the survey that is chosen; until it is read there is nothing to compare. */
  async choose(side) {
    const [{ value }, { files: [file] }] = [this.part(side), this.part(`${side}-file`)];
    this.show(value === FILE, `${side}-file-field`);
    this.showError(null);
    this.surveys[side] = null;
    this.draw();
    const survey = value === FILE ? await readFile(file) : value && readSurvey((await load(value))?.answer);
    if (this.part(side).value !== value || this.part(`${side}-file`).files[0] !== file) return; // another one was chosen meanwhile
    this.surveys[side] = survey;
    this.draw();
  }

  draw() {
    const { earlier, later } = this.surveys;
    const radius = this.part("radius").valueAsNumber;
    this.setText("radius-figure", `${radius} m`);
    this.show(Boolean(earlier && later), "changes");
    if (!earlier || !later) return;
    this.changes = compareSurveys(earlier.damages, later.damages, radius);
    this.listClasses();
    const [state, kind] = [this.part("state").value, this.part("class").value];
    this.shown = this.changes.filter((one) => (!state || one.state === state) && (!kind || one.label === kind));
    const counts = STATES.map((name) => `${this.changes.filter((one) => one.state === name).length} ${name}`);
    const lost = [earlier, later].reduce((sum, { lost: count }) => sum + count, 0);
    this.setText("verdict", `${counts.join(", ")}, within ${radius} m.${lost ? ` ${lost} without a position ${lost === 1 ? "is" : "are"} left out.` : ""}`);
    this.part("map").replaceChildren(...(this.changes.length ? [drawMap(this.changes, new Set(this.shown))] : []));
    this.part("rows").replaceChildren(...this.shown.map((one) => createRow(one)));
    this.show(this.shown.length === 0, "none");
  }

  listClasses() {
    const choice = this.part("class");
    const { value } = choice;
    choice.replaceChildren(new Option("All", ""), ...[...new Set(this.changes.map(({ label }) => label))].sort().map((label) => new Option(label)));
    choice.value = [...choice.options].some((option) => option.value === value) ? value : "";
  }

  /** Mark a change on the map and in the table. */
  mark(number) {
    for (const node of this.querySelectorAll("[data-change]")) node.toggleAttribute("data-marked", node.dataset.change === number);
  }
}

async function readFile(file) {
  try {
    return file && readSurvey(JSON.parse(await file.text()));
  } catch {
    throw Object.assign(new Error(`${file.name} is not a survey.`), { title: "Bad input", hint: "Choose survey.json or survey.geojson, as the downloads above or fovea survey write them." });
  }
}

/** The damage of a survey, from its answer or its GeoJSON. Throws where it is neither. */
function readSurvey(content) {
  if (content?.type === "FeatureCollection") {
    const found = content.features.filter(({ properties }) => properties.kind === "damage");
    const placed = found.filter(({ geometry }) => geometry);
    return { damages: placed.map(({ geometry: { coordinates: [longitude, latitude] }, properties }) => ({ ...properties, latitude, longitude })), lost: found.length - placed.length };
  }
  return { damages: content.damages.map((one) => ({ ...one })), lost: content.not_placed?.length ?? 0 };
}

/** Metres between two places, by the haversine formula. */
function measure(a, b) {
  const [one, other, turn] = [a.latitude, b.latitude, b.longitude - a.longitude].map((degrees) => (degrees * Math.PI) / 180);
  const half = Math.sin((other - one) / 2) ** 2 + Math.cos(one) * Math.cos(other) * Math.sin(turn / 2) ** 2;
  return 2 * RADIUS_M * Math.asin(Math.sqrt(Math.min(half, 1)));
}

/** Changes from an earlier to a later list of damage, most urgent first. */
export function compareSurveys(earlier, later, radius) {
  const pairs = earlier.flatMap((before) => later.filter((after) => after.label === before.label).map((after) => ({ before, after, distance: measure(before, after) })).filter(({ distance }) => distance <= radius));
  const taken = new Set();
  const changes = [];
  for (const pair of pairs.sort((a, b) => a.distance - b.distance)) {
    if (taken.has(pair.before) || taken.has(pair.after)) continue;
    taken.add(pair.before).add(pair.after);
    changes.push({ ...pair, state: compareDamage(pair) });
  }
  changes.push(...later.filter((after) => !taken.has(after)).map((after) => ({ after, state: "new" })));
  changes.push(...earlier.filter((before) => !taken.has(before)).map((before) => ({ before, state: "gone" })));
  const ordered = changes.sort((a, b) => STATES.indexOf(a.state) - STATES.indexOf(b.state));
  return ordered.map((one, number) => ({ ...one, number, label: (one.after ?? one.before).label, place: one.after ?? one.before }));
}

function compareDamage({ before, after }) {
  const [was, is] = [before, after].map(({ severity }) => SEVERITIES.indexOf(severity));
  if (was >= 0 && is >= 0) return is > was ? "worse" : is < was ? "better" : "unchanged";
  if (!before.size || !after.size) return "unchanged";
  return after.size >= GROWTH * before.size ? "worse" : after.size * GROWTH <= before.size ? "better" : "unchanged";
}

const toRow = ({ state, label, place, before, after, distance }) => ({
  change: state, class: label, latitude: place.latitude, longitude: place.longitude, metres_apart: distance === undefined ? "" : distance.toFixed(1),
  severity_before: before?.severity ?? "", severity_after: after?.severity ?? "", size_before: before?.size ?? "", size_after: after?.size ?? "",
  pictures_before: before?.pictures?.join(" ") ?? "", pictures_after: after?.pictures?.join(" ") ?? "",
});

function createRow(one) {
  const { state, label, place, before, after, distance } = one;
  const cells = [label, `${place.latitude.toFixed(5)}, ${place.longitude.toFixed(5)}`, before?.severity ?? "–", after?.severity ?? "–", distance === undefined ? "–" : `${distance.toFixed(1)} m`, (after ?? before).pictures?.[0] ?? "–"];
  const head = createNode("th", "", createNode("span", `change change-${state}`, state));
  const row = createNode("tr", "", head, ...cells.map((text) => createNode("td", "", text)));
  row.dataset.change = one.number;
  row.tabIndex = 0;
  return row;
}

/** A map without tiles: a dot for each change in its colour, on a plane in metres, with a scale. */
function drawMap(changes, shown) {
  const places = changes.map(({ place }) => place);
  const [north, south] = [Math.max(...places.map(({ latitude }) => latitude)), Math.min(...places.map(({ latitude }) => latitude))];
  const [east, west] = [Math.max(...places.map(({ longitude }) => longitude)), Math.min(...places.map(({ longitude }) => longitude))];
  const metre = (RADIUS_M * Math.PI) / 180;
  const [wide, high] = [Math.max(20, (east - west) * metre * Math.cos((north * Math.PI) / 180)), Math.max(20, (north - south) * metre)];
  const scale = Math.min((MAP.width - 2 * MAP.margin) / wide, (MAP.height - 2 * MAP.margin) / high);
  const x = ({ longitude }) => MAP.width / 2 + (longitude - (east + west) / 2) * metre * Math.cos((north * Math.PI) / 180) * scale;
  const y = ({ latitude }) => MAP.height / 2 - (latitude - (north + south) / 2) * metre * scale;
  const svg = createSvg("svg", { viewBox: `0 0 ${MAP.width} ${MAP.height}`, role: "img", "aria-label": `Map of ${changes.length} changes` });
  for (const one of [...changes].reverse().filter((change) => shown.has(change))) {
    const dot = createSvg("circle", { cx: x(one.place).toFixed(1), cy: y(one.place).toFixed(1), r: 7, class: `change-${one.state}`, "data-change": one.number });
    dot.append(createSvg("title", {}, `${one.state}: ${one.label}`));
    svg.append(dot);
  }
  const length = 10 ** Math.floor(Math.log10(MAP.width / 4 / scale));
  svg.append(createSvg("path", { d: `M20 ${MAP.height - 24}v6H${20 + length * scale}v-6`, class: "map-scale" }), createSvg("text", { x: 20, y: MAP.height - 30 }, length >= 1000 ? `${length / 1000} km` : `${length} m`));
  return svg;
}

customElements.define("fovea-survey-compare", SurveyCompare);
