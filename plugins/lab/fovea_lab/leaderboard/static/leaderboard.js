/** Leaderboard page: compares attention methods at equal bytes as a job, and sorts the ranking. */

import { RunForm } from "../../js/run_form.js";
import { save } from "../../js/save.js";

const TEXTS = {
  budget: (row) => row.budget ?? "–",
  bytes: (row) => row.bytes.toFixed(3),
  mean: (row) => row.mean.toFixed(2),
  low: (row) => `${row.low.toFixed(2)} – ${row.high.toFixed(2)}`,
  difference: (row) => `${row.difference.mean >= 0 ? "+" : ""}${row.difference.mean.toFixed(2)}`,
  worse: (row) => `${row.worse} / ${row.better}`,
};

const sortValue = (row, key) => (key === "difference" ? row.difference.mean : row[key] ?? 2);

class Leaderboard extends RunForm {
  connectedCallback() {
    super.connectedCallback();
    this.on("input", "find", () => this.filter());
    this.on("click", "all", (_, button) => this.chooseAll(button.dataset.of));
    this.on("click", "sort", (_, button) => this.sort(button.dataset.key));
    this.on("click", "download", () => save(new Blob([JSON.stringify(this.report, null, 1)], { type: "application/json" }), "ruler.json"));
  }

  /** The page opens with the committed results; those of a run replace them. */
  async openStored() {
    if (/[?&](run|job)=/.test(location.search)) return super.openStored();
    this.report = await (await fetch(this.dataset.results)).json();
    return this.draw();
  }

  showStored({ answer }) {
    this.report = answer;
    this.draw();
  }

  /** Choose all entries of a list, or none if all are chosen. */
  chooseAll(name) {
    const boxes = [...this.form.querySelectorAll(`input[name="${name}"]`)];
    const isOn = boxes.some((box) => !box.checked);
    for (const box of boxes) box.checked = isOn;
  }

  async describeRequest() {
    if (!this.form) return null;
    const data = new FormData(this.form);
    const json = {
      model: data.get("model"), tasks: data.getAll("tasks"), protocol: data.get("protocol"),
      methods: data.getAll("methods").map((method) => ({ method })),
      budgets: data.get("budgets").split(",").map(Number), lengths: [Number(data.get("length"))], n: Number(data.get("n")),
    };
    return { path: "/v1/longctx/ruler", json };
  }

  async request(signal) {
    const { path, json } = await this.describeRequest();
    this.report = await (await this.send(path, { json, signal, asJob: true })).json();
    this.draw();
    this.remember({ path, request: json, answer: this.report }).catch(() => {});
  }

  draw() {
    const all = this.report.leaderboards;
    const informative = all.filter((row) => row.informative);
    this.ranking = informative.length ? informative : all;
    const tasks = this.ranking[0]?.tasks.join(", ");
    this.setText("about", informative.length ? `Over tasks that dense attention can do: ${tasks}.` : `Over all tasks: ${tasks}. Dense attention does too few of them to tell methods apart.`);
    if (this.report.about) this.setText("about", `Committed results: ${this.report.about}. ${this.part("about").textContent}`);
    this.setText("statement", summarize(this.ranking));
    this.turn = this.sorted = undefined;
    this.sort("mean");
    this.show(false, "nothing");
    this.show(true, "result");
  }

  /** Sort by a column, largest first; by the same one again the other way round. */
  sort(key) {
    this.turn = this.sorted === key ? -this.turn : 1;
    this.sorted = key;
    const order = (a, b) => (typeof sortValue(a, key) === "string" ? a[key].localeCompare(b[key]) : sortValue(b, key) - sortValue(a, key));
    this.part("rows").replaceChildren(...[...this.ranking].sort((a, b) => this.turn * order(a, b)).map((row) => this.createRow(row)));
    this.filter();
  }

  /** Show only rows with the words of the search. */
  filter() {
    const words = this.part("find").value.toLowerCase();
    for (const row of this.part("rows").children) row.hidden = !row.textContent.toLowerCase().includes(words);
  }

  createRow(row) {
    const line = this.cloneTemplate("row");
    const keys = [...this.querySelectorAll("[data-part=sort]")].map((button) => button.dataset.key);
    keys.forEach((key, at) => { line.children[at].textContent = TEXTS[key]?.(row) ?? row[key]; });
    return line;
  }
}

/** The best method at the smallest budget, in a sentence. */
function summarize(ranking) {
  const dense = ranking.find(({ method }) => method === "dense");
  const budgets = ranking.map(({ budget }) => budget).filter((budget) => budget !== null && budget !== undefined);
  if (!dense || !budgets.length) return "";
  const smallest = Math.min(...budgets);
  const best = ranking.filter(({ budget }) => budget === smallest).sort((a, b) => b.mean - a.mean)[0];
  return `At ${smallest} of dense’s bytes, ${best.method} does best: ${best.mean.toFixed(2)} (${best.low.toFixed(2)} – ${best.high.toFixed(2)}), where dense has ${dense.mean.toFixed(2)}.`;
}

customElements.define("fovea-leaderboard", Leaderboard);
