/**
 * Runs an experiment, shows its report as the page that the service made of it, and hands a head plan on to
 * llm-longctx. Knows forms and reports; knows no experiment but the needle grid that closes the loop.
 */

import { call } from "./gateway.js";
import { chosenModel, values } from "./form.js";
import { jobNote, submit } from "./submit.js";
import { RunTask } from "./run.js";

const PAGE = { Accept: "text/html" };
const GRID = { lengths: [350, 700, 1200], depths: [0, 50, 100] };

export class Probe extends RunTask {
  connectedCallback() {
    super.connectedCallback();
    this.part("as-job").checked = this.dataset.mode === "job";
    this.on("click", "link", () => this.remember());
    this.on("click", "then", () => this.then());
    if (this.dataset.given && this.dataset.mode === "sync") this.run();
  }

  async run() {
    this.running = new AbortController();
    this.busy(true);
    this.show(false, "link", "loop");
    this.part("stage").prepend(this.part("fault"), this.part("progress"));
    this.part("stage").scrollIntoView({ block: "start" });
    try {
      this.spec = { ...this.example, ...values(this.part("options")) };
      const made = await this.report({ model: chosenModel(this), ...this.spec }, this.part("as-job").checked);
      this.part("answer").replaceChildren(...made);
      this.show(true, "answer", "download", "link");
      this.show(this.plan() !== null, "loop");
    } catch (problem) {
      this.fault(problem);
    } finally {
      this.busy(false, true);
    }
  }

  /** The report's page, as nodes; its text is kept for the download. */
  async report(json, asJob) {
    const response = await submit(this.dataset.path, {
      json, headers: PAGE, signal: this.running.signal, asJob,
      onJob: (job) => this.progress(job.status === "queued" ? undefined : job.progress, jobNote(job)),
    });
    this.kept = await response.clone().blob();
    // Without its head: the sheet in there is for the report opened alone, and parsing it alone breaks this page's policy.
    const text = await response.text();
    const found = new DOMParser().parseFromString(text.slice(text.indexOf("<main>")), "text/html").querySelector("main");
    const title = document.createElement("h2");
    title.textContent = found.querySelector("h1").textContent;
    found.querySelector("h1").replaceWith(title);
    return [...found.childNodes].map((node) => document.adoptNode(node));
  }

  /** Where the head plan of the shown report is, or null. */
  plan() {
    return [...this.part("answer").querySelectorAll("[data-artefact]")].find((link) => link.textContent.startsWith("head-plan"))?.dataset.artefact ?? null;
  }

  /** Find → plan → method → needle grid, beside the grid of full attention. */
  async then() {
    this.running = new AbortController();
    this.part("grids").before(this.part("fault"), this.part("progress"));
    this.part("then").disabled = true;
    this.progress(undefined, "Needle grid");
    this.fault(null);
    this.part("grids").replaceChildren();
    try {
      const plan = await (await call(`/v1/probe/artefacts/${this.plan()}`)).json();
      const method = this.part("method").value;
      for (const longctx of [{ method: "dense" }, { method, plan }]) {
        const lm = this.spec.lm ? { lm: this.spec.lm } : {};
        const made = await this.report({ model: "needle-grid", ...GRID, ...lm, longctx }, true);
        made.find((node) => node.tagName === "H2").textContent = `Needle grid with ${longctx.method}`;
        this.part("grids").append(...made);
      }
    } catch (problem) {
      this.fault(problem);
    } finally {
      this.progress(null);
      this.part("then").disabled = false;
    }
  }

  /** Put the spec into the address, so that it can be kept and passed on. */
  remember() {
    const query = new URLSearchParams({ model: chosenModel(this), spec: JSON.stringify(this.spec) });
    history.replaceState(null, "", `/console/probe?${query}`);
  }

  busy(on, answered = false) {
    super.busy(on);
    if (!on && !answered) this.show(false, "answer");
  }
}
