/** What is computed from labels: agreement with its disagreements, rankings of systems, the leaderboard. */

import { Asking } from "./judge.js";
import { byId, putIn, texts } from "./texts.js";
import { call } from "./gateway.js";
import { Part } from "./element.js";
import { scatter } from "./plot.js";

const CUTS = ["0|123", "01|23", "012|3"];

const figure = (value, digits = 4) => (value === null || value === undefined ? "–" : value.toFixed(digits));

const interval = (ends) => (ends ? `${ends[0].toFixed(3)} … ${ends[1].toFixed(3)}` : "–");

/** The labels of the mini-collection's judge that is looked at first. */
const firstJudge = (judgements) => judgements["query-lift"] ?? Object.values(judgements)[0];

const post = async (what, json, signal) => (await call(`/v1/judge/${what}`, { method: "POST", json, signal })).json();

export class JudgeAgreement extends Asking {
  async example() {
    const { topics, passages, qrels, judgements } = await this.collection();
    this.take({ reference: qrels, judge: firstJudge(judgements), topics, passages }, "the mini-collection");
  }

  /** Take over labels from elsewhere, and compare them as soon as there is a reference. */
  take(given, origin) {
    const form = this.part("form");
    putIn(form, given, origin);
    this.scrollIntoView({ behavior: "smooth", block: "start" });
    form.requestSubmit();
  }

  async answer(form, signal) {
    const given = await texts(form);
    const found = await post("agreement", given, signal);
    const numbers = {
      kappa: figure(found.kappa), interval: interval(found.kappa_interval), alpha: figure(found.alpha),
      quadratic: figure(found.kappa_quadratic), bias: figure(found.bias, 3), pairs: found.pairs,
    };
    for (const [name, value] of Object.entries(numbers)) this.say(name, String(value));
    this.grid(found.confusion);
    CUTS.forEach((cut, place) => {
      this.say(`kappa-${place}`, figure(found.kappa_by_cut[cut]));
      this.say(`alpha-${place}`, figure(found.alpha_by_cut[cut]));
    });
    const [queries, passages] = [byId(given.topics), byId(given.passages)];
    this.say("differ", String(found.disagreements.length));
    this.part("list").replaceChildren(...found.disagreements.map((pair) => this.difference(pair, queries, passages)));
    this.show(true, "result");
  }

  grid(confusion) {
    const most = Math.max(...confusion.flat(), 1);
    confusion.forEach((row, reference) => row.forEach((count, judge) => {
      const cell = this.part(`cell-${reference}-${judge}`);
      cell.textContent = count;
      cell.dataset.shade = Math.ceil((count / most) * 5);
    }));
  }

  difference(pair, queries, passages) {
    const row = this.copyOf("difference");
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

export class JudgeRankings extends Asking {
  async example() {
    const { qrels, judgements, runs } = await this.collection();
    putIn(this.part("form"), { reference: qrels, judge: firstJudge(judgements), runs }, "the mini-collection");
    this.part("form").requestSubmit();
  }

  async answer(form, signal) {
    const found = await post("rankings", { ...(await texts(form)), measure: form.elements.measure.value }, signal);
    const numbers = { tau: found.tau_b, rho: found.rho, "tau-ap": found.tau_ap, kappa: found.kappa, alpha: found.alpha };
    for (const [name, value] of Object.entries(numbers)) this.say(name, figure(value));
    this.part("systems").replaceChildren(...found.systems.map((one) => this.system(one)));
    scatter(this, "scatter", found.systems.map((one) => ({ x: one.reference, y: one.judge, label: one.system })), { same: true });
    this.show(true, "result");
  }

  system(one) {
    const shift = one.shift > 0 ? `+${one.shift}` : String(one.shift);
    return tableRow(this.copyOf("system"), [one.system, figure(one.reference), figure(one.judge), shift]);
  }
}

export class JudgeBoard extends Part {
  async connectedCallback() {
    try {
      const board = await (await call("/v1/judge/leaderboard")).json();
      this.part("rows").replaceChildren(...board.rows.map((row) => this.row(row)));
      scatter(this, "kappa-tau", board.rows.map((row) => ({ x: row.kappa, y: row.tau_b, label: row.judge })));
    } catch (problem) {
      this.fault(problem);
    }
  }

  row(row) {
    const cells = [
      row.judge, figure(row.kappa), interval(row.kappa_interval), figure(row.tau_b), figure(row.alpha), figure(row.rho),
      figure(row.bias, 3), `${(row.invalid_share * 100).toFixed(1)} %`,
    ];
    return tableRow(this.copyOf("row"), cells);
  }
}

/** The row inside a template's table, filled. */
function tableRow(table, cells) {
  const row = table.querySelector("tr");
  cells.forEach((text, place) => (row.children[place].textContent = text));
  return row;
}
