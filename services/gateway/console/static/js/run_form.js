/**
 * Base class of every form that runs something: one request at a time, progress with the elapsed time and the place in
 * the queue, stop, errors with what can be done about them, the code for “Use via API”, and the run for the history.
 *
 * A subclass implements `request(signal)`; it sends with `send`, shows the answer, and calls `remember`.
 */

import { call } from "./gateway.js";
import { CustomElement } from "./custom_element.js";
import { describeEta, formatSeconds } from "./eta.js";
import { selectedModel } from "./form.js";
import { countOthers, jobNote, submit } from "./submit.js";
import "./page.js";
import "./snippet.js";

/** Seconds after which a running request asks how busy its service is. */
const ASK_AFTER_S = 3;

/** Statuses after which the same request may succeed. */
const PASSING = new Set([0, 429, 502, 503, 504]);

export class RunForm extends CustomElement {
  /** Text of the progress bar. */
  static progressLabel = "Working";

  /** Parts that are hidden while a request runs, besides the button that started it. */
  static answerParts = ["nothing", "answer", "result"];

  connectedCallback() {
    this.on("submit", this.form.dataset.part, (event) => {
      event.preventDefault();
      this.run();
      this.part("progress")?.scrollIntoView({ block: "nearest" }); // on a phone it is far from the button
    });
    this.on("click", "stop", ({ detail }) => detail < 2 && this.running?.abort()); // a double click on Run ends here
    this.on("click", "example", () => this.attempt(() => this.fillWithExample()));
    this.attempt(() => this.openStored());
  }

  get form() {
    return this.part("options") ?? this.part("form");
  }

  /** Show the run or the finished job that the address names; a page that can has `showStored(run)`. */
  async openStored() {
    const query = new URLSearchParams(location.search);
    const [run, job] = [query.get("run"), query.get("job")];
    if (!this.showStored || !(run ?? job)) return;
    const { load, loadJob } = await import("./runs.js");
    const found = await (run ? load(run) : loadJob(job));
    if (this.running) return; // something newer was started meanwhile
    if (found && found.answer === undefined && !found.html) this.showError({ title: "The result is a file", message: "Download it from the page Jobs." });
    else if (found) await this.showKept(found);
    else this.showError({ title: "This run is not here", message: "It was deleted, or it belongs to another browser.", hint: "Runs without an API key stay in the browser that started them." });
  }

  /** Show a run, and say if the history had no room for all of its answer, such as large pictures. */
  async showKept(run) {
    const whole = JSON.stringify(run.answer ?? null);
    const kept = whole.replaceAll(/"… \d+ characters"/g, "null");
    const cut = kept === whole ? null : Object.assign(new Error("The history keeps no pictures and texts of this size."), { title: "Not all of the result is here", hint: "Run it again to see the rest." });
    try {
      await this.showStored(cut ? { ...run, answer: JSON.parse(kept) } : run);
    } catch (problem) {
      throw cut ?? problem;
    }
    if (cut) throw cut;
  }

  /** Fill the form with the model's example. */
  async useExample() {}

  /** Fill the form, which can't be sent before its example has come. */
  async fillWithExample() {
    const go = this.part("go");
    const waits = go && !go.disabled;
    if (waits) go.disabled = true;
    try {
      await this.useExample();
    } finally {
      if (waits) go.disabled = false;
    }
  }

  /** Send the form and show the answer. */
  async request(signal) {}

  /** What `request` would send, for code that calls the API: `{ path, json }` or `{ path, body, file }`. */
  async describeRequest() {
    return null;
  }

  get runsAsJob() {
    return this.part("as-job")?.checked ?? false;
  }

  /** Run `request`; a run that is still going is ended. */
  async run() {
    this.running?.abort();
    const running = (this.running = new AbortController());
    this.setBusy(true);
    try {
      await this.request(running.signal);
    } catch (problem) {
      if (this.running === running) this.showProblem(problem);
    } finally {
      if (this.running === running) this.setBusy(false);
    }
  }

  /** Send a request to a path and wait for its answer. */
  async send(path, { signal, asJob = this.runsAsJob, ...request }) {
    this.started = performance.now();
    this.job = null;
    const onJob = (job) => {
      this.job = job;
      this.showProgress(job.status === "queued" ? undefined : job.progress, [jobNote(job), describeEta(job)].filter(Boolean).join(" · "));
    };
    const response = await submit(path, { signal, asJob, onJob, ...request });
    this.milliseconds = performance.now() - this.started;
    return response;
  }

  /**
   * Store a run in the history.
   *
   * `facts` has `path`, `request` (without pictures), `answer`, and where there are some `file`, `model` and `version`.
   */
  async remember(facts) {
    const { store } = await import("./runs.js");
    const page = location.pathname;
    const run = await store({ page, title: document.title.replace(SIGN, "").split(" · ")[0], milliseconds: Math.round(this.milliseconds ?? 0), job: this.job?.id, ...facts });
    this.job = null;
    this.runId = run?.id;
    this.dispatchEvent(new CustomEvent("fovea-run-stored", { bubbles: true, detail: run }));
    return run;
  }

  /** Show an error with buttons for what can be done about it. */
  showProblem(problem) {
    const wantsJob = /respond-async/.test(problem.hint ?? "");
    const shown = wantsJob && this.part("as-job") ? Object.assign(problem, { hint: "A job has no deadline, and you can follow it from any page." }) : problem;
    this.showError(shown, this.actionsFor(problem, wantsJob));
  }

  /** What to offer after an error: words and what they do. */
  actionsFor({ status }, wantsJob) {
    const actions = [];
    if (wantsJob && this.part("as-job")) actions.push(["Run as a job", () => this.runAsJob()]);
    else if (PASSING.has(status)) actions.push(["Try again", () => this.run()]);
    return actions;
  }

  runAsJob() {
    this.part("as-job").checked = true;
    return this.run();
  }

  setBusy(on) {
    if (on) {
      this.showError(null);
      this.show(false, ...this.constructor.answerParts);
    }
    this.showProgress(on ? undefined : null, this.constructor.progressLabel);
    this.setText("progress-elapsed", "");
    clearInterval(this.clock);
    if (on) this.startClock();
    this.classList.toggle("busy", on);
    markTitle(on ? "… " : document.hidden && !this.running?.signal.aborted ? "✓ " : "");
    const [last, next] = (on ? ["go", "stop"] : ["stop", "go"]).map((name) => this.part(name));
    const hasFocus = last?.matches(":focus-visible"); // a hidden button would lose the place of who goes by keys
    this.show(on, "stop");
    this.show(!on, "go");
    if (hasFocus) next?.focus({ preventScroll: true });
  }

  /** Show the elapsed time, and after some seconds what else the service has to do. */
  startClock() {
    const began = Date.now();
    let others = null;
    this.clock = setInterval(() => {
      const seconds = Math.round((Date.now() - began) / 1000);
      if (seconds === ASK_AFTER_S) document.dispatchEvent(new Event("fovea-outage")); // or is the service away?
      if (seconds === ASK_AFTER_S) countOthers(selectedModel(this)).then((count) => (others = count), () => {});
      this.setText("progress-elapsed", formatSeconds(seconds) + (others ? ` · ${others} other request${others === 1 ? "" : "s"}` : ""));
    }, 1000);
  }

  disconnectedCallback() {
    clearInterval(this.clock);
  }

  /** The example request of the selected model; it ends as aborted where another model was chosen meanwhile. */
  async fetchExample() {
    const model = selectedModel(this);
    const example = await (await call(`/v1/models/${model}/example`)).json();
    if (selectedModel(this) !== model) throw new DOMException("Another model was chosen.", "AbortError");
    return example;
  }
}

const SIGN = /^[…✓] /;

/** Put a sign before the page's title: a tab in the background shows that its request runs, or is done. */
function markTitle(sign) {
  document.title = sign + document.title.replace(SIGN, "");
  if (sign === "✓ ") document.addEventListener("visibilitychange", () => markTitle(""), { once: true });
}
