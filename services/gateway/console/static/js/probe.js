/**
 * Runs an experiment, shows its report as the page that the service nodes of it, and hands a head plan on to
 * llm-longctx. Knows forms and reports; knows no experiment but the needle grid that closes the loop.
 */

import { call } from "./gateway.js";
import { selectedModel, readValues } from "./form.js";
import { jobNote, submit } from "./submit.js";
import { RunTask } from "./run.js";

const HTML_HEADERS = { Accept: "text/html" };
const GRID_OPTIONS = { lengths: [350, 700, 1200], depths: [0, 50, 100] };

export class Probe extends RunTask {
  connectedCallback() {
    super.connectedCallback();
    this.part("as-job").checked = this.dataset.mode === "job";
    this.on("click", "link", () => this.updatePermalink());
    this.on("click", "then", () => this.runNeedleGrid());
    if (this.dataset.spec && this.dataset.mode === "sync") this.run();
  }

  async run() {
    this.running = new AbortController();
    this.setBusy(true);
    this.show(false, "link", "loop");
    this.part("stage").prepend(this.part("fault"), this.part("progress"));
    this.part("stage").scrollIntoView({ block: "start" });
    try {
      this.spec = { ...this.example, ...readValues(this.part("options")) };
      const nodes = await this.fetchReport({ model: selectedModel(this), ...this.spec }, this.part("as-job").checked);
      this.part("answer").replaceChildren(...nodes);
      this.show(true, "answer", "download", "link");
      this.show("grid" in this.dataset && this.findPlan() !== null, "loop");
    } catch (problem) {
      this.showError(problem);
    } finally {
      this.setBusy(false, true);
    }
  }

  /** Fetch the HTML report as nodes; its text is stored for the download. */
  async fetchReport(json, asJob) {
    const response = await submit(this.dataset.path, {
      json, headers: HTML_HEADERS, signal: this.running.signal, asJob,
      onJob: (job) => this.showProgress(job.status === "queued" ? undefined : job.progress, jobNote(job)),
    });
    this.answerBlob = await response.clone().blob();
    // Without its head: the style sheet in it breaks this page's content security policy as soon as it is parsed.
    const text = await response.text();
    const main = new DOMParser().parseFromString(text.slice(text.indexOf("<main>")), "text/html").querySelector("main");
    const title = document.createElement("h2");
    title.textContent = main.querySelector("h1").textContent;
    main.querySelector("h1").replaceWith(title);
    return [...main.childNodes].map((node) => document.adoptNode(node));
  }

  /** Name of the head plan in the shown report, or null. */
  findPlan() {
    return [...this.part("answer").querySelectorAll("[data-artefact]")].find((link) => link.textContent.startsWith("head-plan"))?.dataset.artefact ?? null;
  }

  /** Find → plan → method → needle grid, beside the grid of full attention. */
  async runNeedleGrid() {
    this.running = new AbortController();
    this.part("grids").before(this.part("fault"), this.part("progress"));
    this.part("then").disabled = true;
    this.showProgress(undefined, "Needle grid");
    this.showError(null);
    this.part("grids").replaceChildren();
    try {
      const plan = await (await call(`/v1/probe/artefacts/${this.findPlan()}`)).json();
      const method = this.part("method").value;
      for (const longctx of [{ method: "dense" }, { method, plan }]) {
        const lm = this.spec.lm ? { lm: this.spec.lm } : {};
        const nodes = await this.fetchReport({ model: "needle-grid", ...GRID_OPTIONS, ...lm, longctx }, true);
        nodes.find((node) => node.tagName === "H2").textContent = `Needle grid with ${longctx.method}`;
        this.part("grids").append(...nodes);
      }
    } catch (problem) {
      this.showError(problem);
    } finally {
      this.showProgress(null);
      this.part("then").disabled = false;
    }
  }

  /** Put the spec into the address, as a permalink. */
  updatePermalink() {
    const query = new URLSearchParams({ model: selectedModel(this), spec: JSON.stringify(this.spec) });
    history.replaceState(null, "", `/console/probe?${query}`);
  }

  setBusy(on, answered = false) {
    super.setBusy(on);
    if (!on && !answered) this.show(false, "answer");
  }
}
