/** Judging: one pair, and a batch as a job. What is computed from labels is in `judged.js`. */

import { call } from "./gateway.js";
import { Part } from "./element.js";
import { jobNote, submit } from "./submit.js";
import { putIn, texts } from "./texts.js";
import { save } from "./save.js";

const WORDS = ["nothing to do with the query", "on the topic, no answer", "some answer, unclear or among other things", "dedicated to the query, exact answer"];

/** What a form's plain controls hold, without those left empty. */
function given(form) {
  const entries = [...new FormData(form)].filter(([, value]) => typeof value === "string" && value.trim() !== "");
  return Object.fromEntries(entries);
}

/** What the judging elements share: one form, one request at a time, and its progress. */
export class Asking extends Part {
  connectedCallback() {
    this.on("submit", "form", (event) => {
      event.preventDefault();
      this.ask();
    });
    this.on("click", "stop", () => this.running?.abort());
    this.on("click", "example", () => this.guarded(() => this.example()));
  }

  async ask() {
    this.running = new AbortController();
    this.busy(true);
    await this.guarded(() => this.answer(this.part("form"), this.running.signal));
    this.busy(false);
  }

  async guarded(deed) {
    try {
      await deed();
    } catch (problem) {
      this.fault(problem);
    }
  }

  busy(on) {
    if (on) {
      this.fault(null);
      this.show(false, "nothing", "result");
    }
    this.progress(on ? undefined : null);
    this.show(on, "stop");
    this.show(!on, "go");
  }

  async collection() {
    return (await call("/v1/judge/collection")).json();
  }
}

export class JudgePair extends Asking {
  async example() {
    const { pairs } = await (await call(`/v1/models/${this.part("form").elements.model.value}/example`)).json();
    Object.assign(this.part("form").elements.query, { value: pairs[0].query });
    Object.assign(this.part("form").elements.passage, { value: pairs[0].passage });
  }

  async answer(form, signal) {
    const { query, passage, ...rest } = given(form);
    const json = { ...rest, pairs: [{ query, passage }], rationale: true };
    const answer = await (await call("/v1/judge", { method: "POST", json, signal })).json();
    this.draw(answer.results[0]);
  }

  draw(verdict) {
    this.say("grade", verdict.grade ?? "–");
    this.say("grade-words", verdict.grade === null ? `No grade: ${verdict.reason}` : WORDS[verdict.grade]);
    const facts = {
      Signal: verdict.signal?.toFixed(3), Expected: verdict.expected?.toFixed(2), Votes: verdict.votes?.map((vote) => vote ?? "–").join(", "),
      Template: verdict.template, "Language model": verdict.llm, Calibration: verdict.calibration, Attempts: verdict.attempts,
      Tokens: verdict.tokens, Flags: verdict.flags.join(", "),
    };
    const rows = Object.entries(facts).filter(([, value]) => value !== undefined && value !== null && value !== "");
    this.part("facts").replaceChildren(...rows.map(([name, value]) => this.fact(name, value)));
    const said = verdict.rationale?.join("\n\n");
    this.show(Boolean(said), "rationale-block");
    this.say("rationale", said);
    this.show(true, "result");
  }

  fact(name, value) {
    const row = this.copyOf("fact");
    [row.firstElementChild.textContent, row.lastElementChild.textContent] = [name, value];
    return row;
  }
}

export class JudgeBatch extends Asking {
  connectedCallback() {
    super.connectedCallback();
    this.on("click", "keep", (_, button) => this.guarded(() => this.keep(button.dataset.form)));
    this.on("click", "compare", () => this.guarded(() => this.compare()));
  }

  async example() {
    const { topics, passages, runs } = await this.collection();
    putIn(this.part("form"), { topics, passages, runs }, "the mini-collection");
    this.fault(null);
  }

  async answer(form, signal) {
    const { template, depth, budget_tokens, model } = given(form);
    const json = {
      model, ...(await texts(form)), depth: Number(depth ?? 10), options: template ? { template } : {},
      ...(budget_tokens ? { budget_tokens: Number(budget_tokens) } : {}),
    };
    const onJob = (job) => this.progress(job.status === "queued" ? undefined : job.progress, jobNote(job));
    const response = await submit("/v1/judge/batches", { json, signal, asJob: true, onJob });
    this.draw(await response.json());
  }

  draw(done) {
    this.done = done;
    for (const name of ["pairs", "graded", "reused", "invalid", "failed", "left", "tokens"]) this.say(name, done[name].toLocaleString("en"));
    const [failure] = Object.keys(done.errors);
    const why = { budget: "The budget is spent; raise it and start again to go on.", endpoint: `The endpoint is gone: ${failure}` }[done.stopped];
    this.say("stopped", why ?? failure);
    this.show(Boolean(why ?? failure), "stopped");
    const most = Math.max(...done.counts, 1);
    this.part("histogram").replaceChildren(...done.counts.map((count, grade) => this.bar(count, grade, most)));
    this.part("histogram").setAttribute("aria-label", done.counts.map((count, grade) => `${count} of grade ${grade}`).join(", "));
    this.show(true, "result");
  }

  bar(count, grade, most) {
    const bar = this.copyOf("bar");
    const [name, fill, figure] = bar.children;
    name.textContent = `grade ${grade}`;
    [fill.max, fill.value] = [most, count];
    figure.textContent = count;
    return bar;
  }

  async labels(form) {
    return (await call(this.done.files[form])).blob();
  }

  async keep(form) {
    save(await this.labels(form), `labels.${form}`);
  }

  async compare() {
    const judge = await (await this.labels("jsonl")).text();
    document.querySelector("fovea-judge-agreement").take({ judge, ...(await texts(this.part("form"))) }, "the batch");
  }
}
