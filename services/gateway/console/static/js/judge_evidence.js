/** Judge page, evidence: the trust report, significance, scores corrected by people, facts of an answer. */

import { JudgeForm } from "./judge.js";
import { fillTableRow, firstJudge, formatFigure, formatInterval } from "./judge_results.js";
import { forest } from "./plot.js";
import { fillTexts, indexById, readTexts } from "./texts.js";

/** Corrected p below which two systems are said to differ. */
const SIGNIFICANT = 0.05;

function formatSigned(value, digits = 4) {
  if (!Number.isFinite(value)) return "–";
  const text = Math.abs(value).toFixed(digits);
  return Number(text) === 0 ? text : `${value < 0 ? "−" : "+"}${text}`;
}

const inWords = (support) => support.replace("_", " ");

const createItem = (text) => Object.assign(document.createElement("li"), { textContent: text });

/** Base class: fills rows of the element's only kind of table row. */
class EvidenceForm extends JudgeForm {
  fillRows(name, rows) {
    this.part(name).replaceChildren(...rows.map((cells) => fillTableRow(this.cloneTemplate("row"), cells)));
  }

  showStatements(list) {
    this.part("statements").replaceChildren(...list.map((one) => createItem(one.statement)));
  }

  async fillWith(texts) {
    fillTexts(this.part("form"), texts, "the mini-collection");
    this.part("form").requestSubmit();
  }
}

export class JudgeTrust extends EvidenceForm {
  static path = "/v1/judge/trust";

  async useExample() {
    const { qrels, topics, passages, judgements } = await this.fetchCollection();
    await this.fillWith({ reference: qrels, judge: firstJudge(judgements), topics, passages });
  }

  async requestForm(form, signal) {
    await this.askAndDraw(await readTexts(form), signal);
  }

  draw(found) {
    const raters = [found.judge, ...found.baselines];
    this.setText("statement", found.statement);
    this.part("statement").classList.toggle("verdict-good", found.is_better);
    this.fillRows("rows", raters.map((one) => [
      one.name, formatFigure(one.pair_order, 3), formatInterval(one.pair_order_interval), formatFigure(one.tau, 3), formatFigure(one.kappa, 3),
      one.lead_interval ? `${formatSigned(one.lead, 3)} (${one.lead_interval.map((end) => formatSigned(end, 3)).join(" to ")})` : "",
    ]));
    forest(this, "order", raters.map((one) => ({ label: one.name, value: one.pair_order, interval: one.pair_order_interval })), 0.5);
    const missing = found.missing ? ` ${found.missing} labelled pairs lack a signal or a text and are left out.` : "";
    this.setText("sample", `${found.judge.pairs} pairs of ${found.queries} queries.${missing} ${found.notes.join(" ")}`.trim());
    this.show(true, "result");
  }
}

export class JudgeSignificance extends EvidenceForm {
  static path = "/v1/judge/significance";

  static needsPlugin = true;

  async useExample() {
    const { qrels, runs } = await this.fetchCollection();
    await this.fillWith({ labels: qrels, runs });
  }

  async requestForm(form, signal) {
    const { measure, correction } = form.elements;
    await this.askAndDraw({ ...(await readTexts(form)), measure: measure.value, correction: correction.value }, signal);
  }

  draw(found) {
    const name = (pair) => `${pair.first} − ${pair.second}`;
    this.fillRows("pairs", found.comparisons.map((pair) => [
      name(pair), formatSigned(pair.difference), formatInterval(pair.interval), pair.p.toPrecision(2), pair.p_corrected.toPrecision(2),
      `${pair.wins} / ${pair.losses}`,
    ]));
    const differ = found.comparisons.filter((pair) => pair.p_corrected < SIGNIFICANT).sort((a, b) => Math.abs(b.difference) - Math.abs(a.difference));
    const most = differ[0] ? `: most ${name(differ[0])}, ${formatSigned(differ[0].difference, 3)}` : "";
    this.setText("statement", `${differ.length || "None"} of ${found.comparisons.length} pairs of systems differ${differ.length === 1 ? "s" : ""} beyond chance (corrected p < ${SIGNIFICANT})${most}.`);
    forest(this, "differences", found.comparisons.map((pair) => ({ label: name(pair), value: pair.difference, interval: pair.interval })), 0);
    this.showStatements(found.comparisons);
    this.show(true, "result");
  }
}

export class JudgeCorrected extends EvidenceForm {
  static path = "/v1/judge/corrected";

  static needsPlugin = true;

  /** The labels of every third topic stand for what people labelled. */
  async useExample() {
    const { qrels, judgements, runs } = await this.fetchCollection();
    const lines = qrels.split("\n").filter((line) => line.trim());
    const some = new Set([...new Set(lines.map((line) => line.split(/\s+/)[0]))].filter((_, place) => place % 3 === 0));
    const human = `${lines.filter((line) => some.has(line.split(/\s+/)[0])).join("\n")}\n`;
    await this.fillWith({ human, judge: firstJudge(judgements), runs });
  }

  async requestForm(form, signal) {
    await this.askAndDraw({ ...(await readTexts(form)), measure: form.elements.measure.value }, signal);
  }

  draw(found) {
    const best = [...found.systems].sort((a, b) => b.corrected - a.corrected)[0];
    const gain = found.systems.reduce((sum, one) => sum + one.gain, 0) / (found.systems.length || 1);
    this.setText("statement", `${best.system} is best after correction: ${formatFigure(best.corrected, 3)} (${formatInterval(best.interval)}). The judge makes ${found.labelled} topics labelled by people worth ${(gain * found.labelled).toFixed(0)}.`);
    this.setText("labelled", String(found.labelled));
    this.setText("queries", String(found.queries));
    this.fillRows("systems", found.systems.map((one) => [
      one.system, formatFigure(one.judge_only), formatFigure(one.human_only), formatFigure(one.corrected), formatInterval(one.interval), one.gain.toFixed(2),
    ]));
    forest(this, "scores", found.systems.map((one) => ({ label: one.system, value: one.corrected, interval: one.interval })));
    this.showStatements(found.differences);
    this.show(true, "result");
  }
}

export class JudgeNuggets extends EvidenceForm {
  static needsPlugin = true;

  connectedCallback() {
    super.connectedCallback();
    document.addEventListener("fovea-collection", ({ detail }) => this.listTopics(detail));
    this.on("change", "topic", () => this.fillTopic());
  }

  /** Offer the topics of the chosen collection. */
  listTopics(collection) {
    this.collection = collection;
    const topics = collection?.topics ? [...indexById(collection.topics)] : [];
    this.show(topics.length > 0 && Boolean(collection.passages), "topic-field");
    this.part("topic").replaceChildren(new Option("Choose one", ""), ...topics.map(([id, query]) => new Option(query, id)));
  }

  /** The query of a topic, and the passages that people graded best. */
  fillTopic() {
    const { topics, passages, labels = "" } = this.collection;
    const qid = this.part("topic").value;
    if (!qid) return;
    const texts = indexById(passages);
    const graded = labels.split("\n").map((line) => line.trim().split(/\s+/)).filter(([id, , , grade]) => id === qid && Number(grade) > 0);
    const best = graded.sort((a, b) => b[3] - a[3]).slice(0, 3).map((cells) => texts.get(cells[2])).filter(Boolean);
    const { query, passages: field } = this.part("form").elements;
    query.value = indexById(topics).get(qid);
    field.value = best.join("\n\n");
  }

  /** A topic with its two best passages; the answer is the longest sentence of each, the second cited wrongly. */
  async useExample() {
    const { qrels, topics, passages } = await this.fetchCollection();
    const [queries, texts] = [indexById(topics), indexById(passages)];
    const best = qrels.split("\n").map((line) => line.trim().split(/\s+/)).filter((cells) => cells[3] === "3");
    const qid = best[0][0];
    const chosen = best.filter((cells) => cells[0] === qid).slice(0, 2).map((cells) => texts.get(cells[2]));
    const longest = (text) => text.split(/(?<=[.!?])\s/).sort((a, b) => b.length - a.length)[0];
    const sentences = chosen.map((text) => longest(text).replace(/[.!?]$/, ""));
    const { query, passages: field, answer } = this.part("form").elements;
    query.value = queries.get(qid);
    field.value = chosen.join("\n\n");
    answer.value = sentences.map((sentence) => `${sentence} [1].`).join(" ");
    this.part("form").requestSubmit();
  }

  async requestForm(form, signal) {
    const { query, answer, how } = Object.fromEntries(new FormData(form));
    const texts = form.elements.passages.value.split(/\n\s*\n/).map((text) => text.trim()).filter(Boolean);
    const passages = Object.fromEntries(texts.map((text, place) => [String(place + 1), text]));
    const { nuggets } = await this.ask("/v1/judge/nuggets", { query, passages, how }, signal);
    const held = await this.ask("/v1/judge/nuggets/assign", { query, answer, nuggets, how }, signal);
    const support = await this.ask("/v1/judge/support", { query, answer, passages, how }, signal);
    const vital = nuggets.map((one, place) => [one.importance, held.supports[place]]).filter(([importance]) => importance === "vital");
    this.setText("statement", `The answer holds ${vital.filter(([, how]) => how === "support").length} of ${vital.length} vital facts in full; faithfulness ${formatFigure(support.faithfulness, 2)}.`);
    for (const name of ["vital_recall", "all_recall", "precision"]) this.setText(name, formatFigure(held[name], 2));
    for (const name of ["citation_precision", "citation_recall", "faithfulness"]) this.setText(name, formatFigure(support[name], 2));
    this.fillRows("facts", nuggets.map((one, place) => [one.text, one.importance, one.passages.join(", "), inWords(held.supports[place])]));
    this.fillRows("sentences", support.sentences.map((one) => [
      one.text, Object.entries(one.cited).map(([id, found]) => `[${id}] ${inWords(found)}`).join(", ") || "–", one.best_passage ?? "–", inWords(one.best),
    ]));
    this.show(true, "result");
  }
}

customElements.define("fovea-judge-trust", JudgeTrust);
customElements.define("fovea-judge-significance", JudgeSignificance);
customElements.define("fovea-judge-corrected", JudgeCorrected);
customElements.define("fovea-judge-nuggets", JudgeNuggets);
