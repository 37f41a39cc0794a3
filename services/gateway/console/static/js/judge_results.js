/** Judge page, results: agreement with its disagreements, rankings of systems, the leaderboard. */

import { findMissing, JudgeForm, whenSeen } from "./judge.js";
import { indexById, fillTexts, readTexts } from "./texts.js";
import { call } from "./gateway.js";
import { CustomElement } from "./custom_element.js";
import { scatter } from "./plot.js";

const CUTS = ["0|123", "01|23", "012|3"];

export const formatFigure = (value, digits = 4) => (value === null || value === undefined ? "–" : value.toFixed(digits));

export const formatInterval = (ends) => (ends ? `${ends[0].toFixed(3)} … ${ends[1].toFixed(3)}` : "–");

/** The labels of the mini-collection's first judge. */
export const firstJudge = (judgements) => judgements["query-lift"] ?? Object.values(judgements)[0];

export class JudgeAgreement extends JudgeForm {
  static path = "/v1/judge/agreement";

  async useExample() {
    const { topics, passages, qrels, judgements } = await this.fetchCollection();
    this.compareLabels({ reference: qrels, judge: firstJudge(judgements), topics, passages }, "the mini-collection");
  }

  /** Fill in labels from elsewhere, and compare them once there is a reference. */
  compareLabels(labels, origin) {
    const form = this.part("form");
    fillTexts(form, labels, origin);
    document.querySelector('[data-tab="agreement"]')?.click();
    form.requestSubmit();
  }

  async requestForm(form, signal) {
    await this.askAndDraw(await readTexts(form), signal);
  }

  draw(found, labels) {
    const numbers = {
      kappa: formatFigure(found.kappa), interval: formatInterval(found.kappa_interval), alpha: formatFigure(found.alpha),
      quadratic: formatFigure(found.kappa_quadratic), bias: formatFigure(found.bias, 3), pairs: found.pairs,
    };
    for (const [name, value] of Object.entries(numbers)) this.setText(name, String(value));
    this.setText("statement", describeAgreement(found));
    this.showConfusion(found.confusion);
    CUTS.forEach((cut, index) => {
      this.setText(`kappa-${index}`, formatFigure(found.kappa_by_cut[cut]));
      this.setText(`alpha-${index}`, formatFigure(found.alpha_by_cut[cut]));
    });
    const [queries, passages] = [indexById(labels.topics), indexById(labels.passages)];
    this.setText("differ", String(found.disagreements.length));
    this.part("list").replaceChildren(...found.disagreements.map((pair) => this.createDifference(pair, queries, passages)));
    this.show(true, "result");
  }

  showConfusion(confusion) {
    const most = Math.max(...confusion.flat(), 1);
    confusion.forEach((row, reference) => row.forEach((count, judge) => {
      const cell = this.part(`cell-${reference}-${judge}`);
      cell.textContent = count;
      cell.dataset.shade = Math.ceil((count / most) * 5);
    }));
  }

  createDifference(pair, queries, passages) {
    const row = this.cloneTemplate("difference");
    const [reference, judge] = row.querySelectorAll("b");
    reference.textContent = pair.reference;
    judge.textContent = pair.judge;
    row.classList.toggle("difference-wide", Math.abs(pair.reference - pair.judge) > 1);
    row.querySelector("code").textContent = `${pair.qid} ${pair.docid}`;
    row.querySelector(".muted").textContent = queries.get(pair.qid) ?? "";
    row.querySelector(".difference-text").textContent = passages.get(pair.docid) ?? "";
    return row;
  }
}

export class JudgeRankings extends JudgeForm {
  static path = "/v1/judge/rankings";

  static needsPlugin = true;

  async useExample() {
    const { qrels, judgements, runs } = await this.fetchCollection();
    fillTexts(this.part("form"), { reference: qrels, judge: firstJudge(judgements), runs }, "the mini-collection");
    this.part("form").requestSubmit();
  }

  async requestForm(form, signal) {
    await this.askAndDraw({ ...(await readTexts(form)), measure: form.elements.measure.value }, signal);
  }

  draw(found) {
    const numbers = { tau: found.tau_b, rho: found.rho, "tau-ap": found.tau_ap, kappa: found.kappa, alpha: found.alpha };
    for (const [name, value] of Object.entries(numbers)) this.setText(name, formatFigure(value));
    this.setText("statement", describeRanking(found));
    this.part("systems").replaceChildren(...found.systems.map((one) => this.createSystemRow(one)));
    scatter(this, "scatter", found.systems.map((one) => ({ x: one.reference, y: one.judge, label: one.system })), { same: true });
    this.show(true, "result");
  }

  createSystemRow(one) {
    const shift = one.shift > 0 ? `+${one.shift}` : String(one.shift);
    return fillTableRow(this.cloneTemplate("system"), [one.system, formatFigure(one.reference), formatFigure(one.judge), shift]);
  }
}

export class JudgeBoard extends CustomElement {
  /** The board is fetched when its tab is opened. */
  connectedCallback() {
    whenSeen(this, () => this.attempt(() => this.load()));
  }

  async load() {
    const problem = await findMissing();
    this.show(!problem, "board");
    if (problem) throw problem;
    const board = await (await call("/v1/judge/leaderboard")).json();
    const best = [...board.rows].sort((a, b) => b.kappa - a.kappa)[0];
    if (best) this.setText("statement", `${best.judge} agrees best with people: kappa ${formatFigure(best.kappa, 2)} (${formatInterval(best.kappa_interval)}), tau-b ${formatFigure(best.tau_b, 2)}.`);
    this.part("rows").replaceChildren(...board.rows.map((row) => this.createRow(row)));
    scatter(this, "kappa-tau", board.rows.map((row) => ({ x: row.kappa, y: row.tau_b, label: row.judge })));
  }

  createRow(row) {
    const cells = [
      row.judge, formatFigure(row.kappa), formatInterval(row.kappa_interval), formatFigure(row.tau_b), formatFigure(row.alpha), formatFigure(row.rho),
      formatFigure(row.bias, 3), `${(row.invalid_share * 100).toFixed(1)} %`,
    ];
    return fillTableRow(this.cloneTemplate("row"), cells);
  }
}

const KAPPA_WORDS = [[0.8, "Almost perfect"], [0.6, "Substantial"], [0.4, "Moderate"], [0.2, "Fair"], [0, "Slight"]];

/** Agreement in a sentence, in the words of Landis and Koch (1977). */
function describeAgreement({ kappa, kappa_interval: interval, pairs, bias }) {
  if (kappa === null) return `Kappa is undefined on these ${pairs} pairs.`;
  const [, words] = KAPPA_WORDS.find(([least]) => kappa >= least) ?? [0, "No"];
  const shift = Math.abs(bias ?? 0) < 0.05 ? "The judge is neither strict nor lenient" : `On average the judge grades ${Math.abs(bias).toFixed(2)} too ${bias > 0 ? "high" : "low"}`;
  return `${words} agreement: kappa ${kappa.toFixed(2)}${interval ? ` (${formatInterval(interval)})` : ""} on ${pairs} pairs. ${shift}.`;
}

function describeRanking({ systems, tau_b: tau }) {
  const best = (key) => [...systems].sort((a, b) => b[key] - a[key])[0]?.system;
  const [reference, judge] = [best("reference"), best("judge")];
  const first = reference === judge ? `Both put ${reference} first` : `People put ${reference} first, the judge ${judge}`;
  return `${first}; tau-b ${formatFigure(tau, 2)} over ${systems.length} systems.`;
}

/** The row inside a template's table, filled. */
export function fillTableRow(table, cells) {
  const row = table.querySelector("tr");
  cells.forEach((text, index) => (row.children[index].textContent = text));
  return row;
}

customElements.define("fovea-judge-agreement", JudgeAgreement);
customElements.define("fovea-judge-rankings", JudgeRankings);
customElements.define("fovea-judge-board", JudgeBoard);
