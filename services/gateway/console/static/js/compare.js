/**
 * Two or three models of a task on the present picture, side by side: views that zoom and pan together, where their
 * masks differ, and a table of findings by model. Findings of several models are one where their boxes overlap.
 */

import { writeCsv } from "./export_all.js";
import { createButton, createNode, partOf } from "./custom_element.js";
import { blend, readColour } from "./canvas.js";
import { save } from "./save.js";

const MOST = 3;

/** Overlap (IoU) of two boxes from which they are the same finding. */
const SAME = 0.3;

const COLOURS = { first: "--only-first", second: "--only-second", both: "--mask" };

/** The comparison of a page of pictures; opened again, it keeps its choice of models. */
export function open(page) {
  page.comparison ??= new Comparison(page);
  page.show(true, "comparison");
  page.comparison.form.scrollIntoView({ block: "nearest" });
  page.comparison.form.querySelector("input").focus();
}

class Comparison {
  constructor(page) {
    this.page = page;
    this.entries = [];
    this.form = page.part("comparison-form");
    this.form.addEventListener("change", () => this.checkChoice());
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      event.stopPropagation();
      page.attempt(() => this.run());
    });
    page.on("click", "close-comparison", () => page.show(false, "comparison"));
    page.on("change", "pair", () => this.redraw());
    page.part("comparison-tools").addEventListener("click", ({ target }) => target.dataset.zoom && (this.leader ?? this.viewers[0])?.act(target.dataset.zoom));
    this.checkChoice();
  }

  get chosen() {
    return [...this.form.querySelectorAll(":checked")].map(({ value }) => value);
  }

  get viewers() {
    return [...this.page.part("panes").querySelectorAll("fovea-viewer")];
  }

  checkChoice() {
    const count = this.chosen.length;
    this.form.querySelector("button").disabled = count < 2 || count > MOST;
    this.page.setText("comparison-note", count > MOST ? `Choose at most ${MOST}.` : count < 2 ? "Choose two or three." : "");
  }

  /** Ask each model for the present picture; a model that fails says so in its pane. */
  async run() {
    const { page } = this;
    if (!page.picture) throw Object.assign(new Error("There is no image to compare on."), { title: "No image", hint: "Add one first." });
    this.item = page.current;
    this.entries = this.chosen.map((model) => ({ model, state: "Waiting" }));
    this.draw();
    page.show(true, "comparison-result");
    for (const entry of this.entries) {
      entry.state = "Running";
      this.redraw();
      await this.ask(entry);
      this.redraw();
    }
  }

  async ask(entry) {
    const { page } = this;
    try {
      const began = performance.now();
      const response = await page.sendAs(entry.model, this.item.file);
      entry.prepared = await page.prepare(await response.json());
      entry.state = `${Math.round(performance.now() - began)} ms`;
    } catch (problem) {
      entry.state = `Failed: ${problem.message}`;
    }
  }

  /** Make the panes anew: one a model, and one for the difference of two masks. */
  draw() {
    const { page } = this;
    const pairs = this.entries.flatMap((first, at) => this.entries.slice(at + 1).map((second) => [first, second]));
    page.part("pair").replaceChildren(...pairs.map(([first, second], at) => new Option(`${first.model} – ${second.model}`, at)));
    this.pairs = pairs;
    const panes = this.entries.map((entry) => (entry.pane = this.createPane(entry.model)));
    this.difference = page.maskOf ? this.createPane("Difference") : null;
    page.part("panes").replaceChildren(...panes, ...(this.difference ? [this.difference] : []));
    page.show(Boolean(this.difference), "pair-field");
    page.show(this.difference !== null && pairs.length > 1, "pair-choice");
    this.leader = null;
    for (const viewer of this.viewers) this.link(viewer);
  }

  createPane(name) {
    const pane = this.page.cloneTemplate("pane");
    partOf(pane, "pane-name").textContent = name;
    pane.querySelector("canvas").setAttribute("aria-label", name);
    pane.querySelector("fovea-viewer").setAttribute("aria-label", `${name}; plus and minus zoom, 0 fits, arrows pan`);
    return pane;
  }

  /** The view that was touched last leads; the others show the same part. */
  link(viewer) {
    for (const type of ["pointerdown", "wheel", "focusin", "keydown"]) viewer.addEventListener(type, () => (this.leader = viewer), { passive: true, capture: true });
    const follow = () => viewer === (this.leader ?? this.viewers[0]) && this.viewers.forEach((other) => other !== viewer && other.follow(viewer));
    viewer.addEventListener("scroll", follow);
    viewer.addEventListener("fovea-view", follow);
  }

  redraw() {
    const { page } = this;
    if (!this.entries.length || page.current !== this.item) return;
    for (const { pane, prepared, state } of this.entries) {
      partOf(pane, "pane-facts").textContent = prepared && this.hasFindings ? `${count(page.describeFindings(prepared).length, "finding")} · ${state}` : state;
      if (prepared) page.drawCompared(resize(pane, prepared.size), prepared);
    }
    const ready = this.entries.filter(({ prepared }) => prepared);
    this.drawDifference();
    page.show(this.hasFindings, "comparison-table");
    if (this.hasFindings) this.drawTable(ready);
  }

  /** A page of restored pictures has none. */
  get hasFindings() {
    return this.page.part("findings") !== null;
  }

  drawDifference() {
    const pair = this.pairs[Number(this.page.part("pair").value) || 0];
    if (!this.difference || !pair?.every(({ prepared }) => prepared)) return;
    const [first, second] = pair.map(({ prepared }) => this.page.maskOf(prepared));
    const { size } = pair[0].prepared;
    const context = resize(this.difference, size);
    context.filter = "grayscale(1)";
    context.drawImage(this.page.picture, 0, 0, size.width, size.height);
    context.filter = "none";
    const colours = Object.fromEntries(Object.entries(COLOURS).map(([name, variable]) => [name, readColour(this.page, variable)]));
    const { image, shared, either } = paintDifference(first, second, size, colours);
    blend(context, image);
    const words = either ? `${(100 * shared / either).toFixed(1)} % of the area that either marks is marked by both (IoU ${(shared / either).toFixed(3)}, Dice ${dice(first, second, shared).toFixed(3)}).` : "Neither marks anything.";
    partOf(this.difference, "pane-facts").textContent = "";
    this.page.setText("agreement", `${pair[0].model} and ${pair[1].model}: ${words}`);
    this.page.setText("only-first", pair[0].model);
    this.page.setText("only-second", pair[1].model);
    this.difference.querySelector("canvas").setAttribute("aria-label", `Difference: ${words}`);
  }

  drawTable(ready) {
    const { page } = this;
    this.rows = matchFindings(ready.map(({ model, prepared }) => ({ model, found: page.describeFindings(prepared) })));
    const heads = ["Finding", ...ready.map(({ model }) => model)];
    page.part("comparison-head").replaceChildren(...heads.map((text) => Object.assign(createNode("th", "text", text), { scope: "col" })));
    page.part("comparison-rows").replaceChildren(...this.rows.map((cells, at) => createNode("tr", "", createNode("th", "figures", String(at + 1)), ...ready.map(({ model }) => createNode("td", "figures", cells.get(model)?.words ?? "–")))));
    if (!page.maskOf && ready.length > 1) {
      const common = this.rows.filter((cells) => cells.size === ready.length && new Set([...cells.values()].map(({ row }) => row.label)).size === 1).length;
      page.setText("agreement", `The ${ready.length} models name the same class in ${common} of ${count(this.rows.length, "finding")}.`);
    }
    page.part("comparison-save").replaceChildren(...(this.rows.length ? [createButton("Table as CSV", () => this.save(ready))] : []));
  }

  save(ready) {
    const rows = this.rows.map((cells, at) => Object.fromEntries([["finding", at + 1], ...ready.map(({ model }) => [model, cells.get(model)?.words ?? ""])]));
    save(new Blob([writeCsv(rows)], { type: "text/csv" }), `${this.page.stem}.models.csv`);
  }
}

const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

function resize(pane, { width, height }) {
  const canvas = pane.querySelector("canvas");
  Object.assign(canvas, { width, height });
  return canvas.getContext("2d");
}

/** Findings of several models as rows: in each, what every model found there, by model. */
export function matchFindings(models) {
  const rows = [];
  for (const { model, found } of models) {
    for (const finding of found) {
      const fits = rows.filter((row) => !row.has(model)).map((row) => [overlap([...row.values()][0].box, finding.box), row]);
      const [best, row] = fits.sort(([a], [b]) => b - a)[0] ?? [0];
      if (best >= SAME) row.set(model, finding);
      else rows.push(new Map([[model, finding]]));
    }
  }
  return rows;
}

function overlap([ax1, ay1, ax2, ay2], [bx1, by1, bx2, by2]) {
  const shared = Math.max(0, Math.min(ax2, bx2) - Math.max(ax1, bx1)) * Math.max(0, Math.min(ay2, by2) - Math.max(ay1, by1));
  return shared / ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - shared || 1);
}

/** Two masks as a picture in three colours, with the pixels that both and that either mark. */
function paintDifference(first, second, { width, height }, colours) {
  const image = new ImageData(width, height);
  let [shared, either] = [0, 0];
  for (let at = 0; at < first.length; at += 1) {
    if (!first[at] && !second[at]) continue;
    either += 1;
    shared += first[at] & second[at];
    image.data.set([...(first[at] && second[at] ? colours.both : first[at] ? colours.first : colours.second), 170], at * 4);
  }
  return { image, shared, either };
}

const sum = (mask) => mask.reduce((total, one) => total + one, 0);
const dice = (first, second, shared) => (2 * shared) / (sum(first) + sum(second));
