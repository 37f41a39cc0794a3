/** Judge page: one pair, and a batch as a job. What is computed from labels is in `judge_results.js`. */

import { call } from "./gateway.js";
import { RunForm } from "./run_form.js";
import { fillTexts, readTexts } from "./texts.js";
import { save } from "./save.js";

const GRADE_TEXTS = ["nothing to do with the query", "on the topic, no answer", "some answer, unclear or among other things", "dedicated to the query, exact answer"];

/** Values of a form's text controls, without empty ones. */
function readText(form) {
  const entries = [...new FormData(form)].filter(([, value]) => typeof value === "string" && value.trim() !== "");
  return Object.fromEntries(entries);
}

/** Do something once an element is first seen. */
export function whenSeen(element, act) {
  const seen = new IntersectionObserver((changes) => {
    if (!changes.at(-1).isIntersecting) return;
    seen.disconnect();
    act();
  });
  seen.observe(element);
}

let missing;

/** Why steps of the plug-in evaluation can't be taken, asked once; null where it is installed. */
export function findMissing() {
  missing ??= call("/v1/judge/leaderboard").then(() => null, ({ hint }) => (/pip install/.test(hint) ? { title: "Not installed", message: "This step comes with the plug-in evaluation, which the judge’s service does not have.", hint } : null));
  return missing;
}

/** Base class of the judge's elements. */
export class JudgeForm extends RunForm {
  static answerParts = ["nothing", "result"];

  /** Path of its request; a stored run of it is shown again by `draw(answer, request)`. */
  static path = null;

  /** Whether this step comes with the plug-in evaluation. */
  static needsPlugin = false;

  /** A step whose plug-in is not installed says so, once it is seen, in place of its form. */
  connectedCallback() {
    super.connectedCallback();
    if (this.constructor.needsPlugin) whenSeen(this, async () => {
      const problem = await findMissing();
      if (!problem) return;
      this.show(false, "form", "nothing");
      this.showError(problem);
    });
  }

  async request(signal) {
    this.sent = null;
    await this.requestForm(this.form, signal);
    if (this.sent) this.remember(this.sent).catch(() => {});
  }

  /** Read the form, send it with `ask` and show the answer. */
  async requestForm(form, signal) {}

  /** Send a request to `path` and show its answer. */
  async askAndDraw(json, signal, asJob) {
    this.draw(await this.ask(this.constructor.path, json, signal, asJob), json);
  }

  async showStored({ path, request, answer }) {
    if (!path || path !== this.constructor.path || !answer) return;
    document.getElementById(this.closest("[role=tabpanel]").getAttribute("aria-labelledby")).click();
    this.draw(answer, request);
    this.show(false, "nothing");
  }

  /** Send JSON and return the answer; while the request is only described, end with it. */
  async ask(path, json, signal, asJob = false) {
    if (this.isDescribing) throw Object.assign(new Error("described"), { described: { path, json } });
    const answer = await (await this.send(path, { json, signal, asJob })).json();
    this.sent = { path, request: json, answer };
    return answer;
  }

  async describeRequest() {
    this.isDescribing = true;
    try {
      await this.requestForm(this.form, null);
    } catch (problem) {
      if (problem.described) return problem.described;
      throw problem;
    } finally {
      this.isDescribing = false;
    }
    return null;
  }

  async fetchCollection() {
    return (await call("/v1/judge/collection")).json();
  }
}

class JudgePair extends JudgeForm {
  static path = "/v1/judge";

  async useExample() {
    const { pairs } = await (await call(`/v1/models/${this.part("form").elements.model.value}/example`)).json();
    Object.assign(this.part("form").elements.query, { value: pairs[0].query });
    Object.assign(this.part("form").elements.passage, { value: pairs[0].passage });
  }

  async requestForm(form, signal) {
    const { query, passage, ...rest } = readText(form);
    await this.askAndDraw({ ...rest, pairs: [{ query, passage }], rationale: true }, signal);
  }

  draw({ results: [verdict] }) {
    this.setText("grade", verdict.grade ?? "–");
    this.setText("grade-words", verdict.grade === null ? `No grade: ${verdict.reason}` : GRADE_TEXTS[verdict.grade]);
    const facts = {
      Signal: verdict.signal?.toFixed(3), Expected: verdict.expected?.toFixed(2), Votes: verdict.votes?.map((vote) => vote ?? "–").join(", "),
      Template: verdict.template, "Language model": verdict.llm, Calibration: verdict.calibration, Attempts: verdict.attempts,
      Tokens: verdict.tokens, Flags: verdict.flags.join(", "),
    };
    const rows = Object.entries(facts).filter(([, value]) => value !== undefined && value !== null && value !== "");
    this.part("facts").replaceChildren(...rows.map(([name, value]) => this.createFact(name, value)));
    const rationale = verdict.rationale?.join("\n\n");
    this.show(Boolean(rationale), "rationale-block");
    this.setText("rationale", rationale);
    this.show(true, "result");
  }

  createFact(name, value) {
    const row = this.cloneTemplate("fact");
    [row.firstElementChild.textContent, row.lastElementChild.textContent] = [name, value];
    return row;
  }
}

class JudgeBatch extends JudgeForm {
  static path = "/v1/judge/batches";

  connectedCallback() {
    super.connectedCallback();
    this.on("click", "keep", (_, button) => this.attempt(() => this.saveLabels(button.dataset.form)));
    this.on("click", "compare", () => this.attempt(() => this.compare()));
  }

  async useExample() {
    const { topics, passages, runs } = await this.fetchCollection();
    fillTexts(this.part("form"), { topics, passages, runs }, "the mini-collection");
    this.showError(null);
  }

  async requestForm(form, signal) {
    const { template, depth, budget_tokens, model } = readText(form);
    const json = {
      model, ...(await readTexts(form)), depth: Number(depth ?? 10), options: template ? { template } : {},
      ...(budget_tokens ? { budget_tokens: Number(budget_tokens) } : {}),
    };
    await this.askAndDraw(json, signal, true);
  }

  draw(batch) {
    this.batch = batch;
    const rest = [[batch.uncalibrated, "with a signal and no grade, as the judge is not calibrated"], [batch.invalid, "without a valid grade"], [batch.failed, "failed"], [batch.left, "left"]].filter(([count]) => count).map(([count, words]) => `${count.toLocaleString("en")} ${words}`);
    this.setText("statement", `${batch.graded === batch.pairs ? "All" : `${batch.graded.toLocaleString("en")} of`} ${batch.pairs.toLocaleString("en")} pairs have a grade${rest.length ? `; ${rest.join(", ")}` : ""}.`);
    for (const name of ["pairs", "graded", "reused", "invalid", "failed", "left", "tokens"]) this.setText(name, batch[name].toLocaleString("en"));
    const [failure] = Object.keys(batch.errors);
    const reason = { budget: "The budget is used up; raise it and start again to continue.", endpoint: `The endpoint can't be reached: ${failure}` }[batch.stopped];
    this.setText("stopped", reason ?? failure);
    this.show(Boolean(reason ?? failure), "stopped");
    const most = Math.max(...batch.counts, 1);
    this.part("histogram").replaceChildren(...batch.counts.map((count, grade) => this.createBar(count, grade, most)));
    this.part("histogram").setAttribute("aria-label", batch.counts.map((count, grade) => `${count} of grade ${grade}`).join(", "));
    this.show(true, "result");
  }

  createBar(count, grade, most) {
    const bar = this.cloneTemplate("bar");
    const [name, fill, figure] = bar.children;
    name.textContent = `grade ${grade}`;
    [fill.max, fill.value] = [most, count];
    figure.textContent = count;
    return bar;
  }

  async fetchLabels(form) {
    return (await call(this.batch.files[form])).blob();
  }

  async saveLabels(form) {
    save(await this.fetchLabels(form), `labels.${form}`);
  }

  async compare() {
    const judge = await (await this.fetchLabels("jsonl")).text();
    document.querySelector("fovea-judge-agreement").compareLabels({ judge, ...(await readTexts(this.part("form"))) }, "the batch");
  }
}

customElements.define("fovea-judge-pair", JudgePair);
customElements.define("fovea-judge-batch", JudgeBatch);
