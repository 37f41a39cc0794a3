/**
 * Runs an experiment, shows its report as the page that the service nodes of it, and hands a head plan on to
 * llm-longctx. Knows forms and reports; knows no experiment but the needle grid that closes the loop.
 */

import { call } from "./gateway.js";
import { createNode } from "./custom_element.js";
import { fillForm, selectedModel, readValues } from "./form.js";
import { HeadBench } from "./head_bench.js";
import { readReport } from "./report.js";
import { RunTask } from "./run.js";
import { copyText } from "./save.js";

const HTML_HEADERS = { Accept: "text/html" };
const GRID_OPTIONS = { lengths: [350, 700, 1200], depths: [0, 50, 100] };

class Probe extends RunTask {
  static answerParts = ["nothing", "answer", "download", "link", "pin", "notebook", "loop", "head"];

  connectedCallback() {
    super.connectedCallback();
    this.part("as-job").checked = this.dataset.mode === "job";
    this.on("click", "link", () => this.updatePermalink());
    this.on("click", "then", () => this.runNeedleGrid());
    this.on("click", "pin", () => this.attempt(() => this.pin()));
    this.on("click", "notebook", () => this.attempt(async () => (await import("./notebook.js")).saveNotebook(this.part("answer").querySelector("h2")?.textContent ?? "Experiment", { model: this.asked, ...this.spec }, new URL(this.permalink, location.href))));
    this.bench = new HeadBench(this);
    this.addEventListener("fovea-model", () => {
      this.part("as-job").checked = this.dataset.mode === "job";
      this.offerModels().catch(() => {});
    });
    this.offerModels().catch(() => {}); // without the list the field takes a name, as before
    const isStored = /[?&](run|job)=/.test(location.search);
    if (this.dataset.spec && this.dataset.mode === "sync" && !isStored) this.run();
  }

  /** Replace the field of the language model by a menu of those that can be studied. */
  async offerModels() {
    const field = this.part("options").querySelector('input[name="lm"]');
    if (!field) return;
    const models = await (await call(`${this.dataset.path}/models`)).json();
    const words = ({ name, layers, heads }) => (layers ? `${name} (${layers} layers × ${heads} heads)` : name);
    const entries = models.filter((one) => !one.default).map((one) => new Option(words(one), one.name));
    const known = entries.some(({ value }) => value === field.value) || !field.value;
    const menu = createNode("select", "", new Option(`Default: ${words(models.find((one) => one.default))}`, ""), ...entries, ...(known ? [] : [new Option(field.value)]));
    Object.assign(menu, { id: field.id, name: field.name, value: field.value });
    menu.dataset.kind = field.dataset.kind;
    field.replaceWith(menu);
  }

  async describeRequest() {
    return { path: this.dataset.path, json: { model: selectedModel(this), ...this.example, ...readValues(this.part("options")) } };
  }

  async request(signal) {
    this.part("stage").prepend(this.part("fault"), this.part("progress"));
    const { path, json } = await this.describeRequest();
    const { model, ...spec } = json;
    Object.assign(this, { spec, asked: model });
    this.showReport(await this.fetchReport(json, this.runsAsJob, signal));
    this.storing = this.remember({ path, request: json, html: await this.answerBlob.text() });
    this.storing.catch(() => {});
  }

  /** Pin the run that is shown, for a comparison. */
  async pin() {
    const id = (await this.storing?.catch(() => null))?.id ?? this.storedId;
    if (!id) throw Object.assign(new Error("This browser keeps no runs."), { title: "Not pinned" });
    const { pin } = await import("./runs.js");
    await pin(id, true);
    this.setText("pin", "Pinned");
    document.dispatchEvent(new Event("fovea-pinned"));
  }

  showReport(nodes) {
    this.bench.clear();
    this.part("answer").replaceChildren(...nodes);
    [...this.part("answer").querySelectorAll("a")].find((link) => link.textContent.startsWith("Permalink"))?.parentElement.remove(); // the page has its own
    this.setText("pin", "Pin");
    this.setText("link", "Copy permalink");
    this.show(false, "nothing", "head");
    this.show(true, "answer", "download", "link", "pin", "notebook");
    this.show("grid" in this.dataset && this.findPlan() !== null, "loop");
  }

  async showStored({ id, request: { model, ...spec } = {}, html, answer }) {
    Object.assign(this, { spec, asked: model, storedId: id });
    fillForm(this.part("options"), spec);
    this.answerBlob = html ? new Blob([html], { type: "text/html" }) : new Blob([JSON.stringify(answer)], { type: "application/json" });
    if (html) return this.showReport(readReport(html));
    const view = createNode("fovea-result", "");
    view.drawJson(answer);
    return this.showReport([view]);
  }

  /** Fetch the HTML report as nodes; its text is stored for the download. */
  async fetchReport(json, asJob, signal) {
    const response = await this.send(this.dataset.path, { json, headers: HTML_HEADERS, signal, asJob });
    this.answerBlob = await response.clone().blob();
    return readReport(await response.text());
  }

  /** Name of the head plan in the shown report, or null. */
  findPlan() {
    return [...this.part("answer").querySelectorAll("[data-artefact]")].find((link) => link.textContent.startsWith("head-plan"))?.dataset.artefact ?? null;
  }

  /** Find → plan → method → needle grid, beside the grid of full attention. */
  async runNeedleGrid(chosen) {
    this.show(true, "loop");
    const { signal } = (this.running = new AbortController());
    this.part("loop").scrollIntoView({ block: "nearest" });
    this.part("grids").before(this.part("fault"), this.part("progress"));
    this.part("then").disabled = true;
    this.showProgress(undefined, "Needle grid");
    this.showError(null);
    this.part("grids").replaceChildren();
    await this.attempt(async () => {
      const plan = chosen ?? (await (await call(`/v1/probe/artefacts/${this.findPlan()}`)).json());
      const method = this.part("method").value;
      for (const longctx of [{ method: "dense" }, { method, plan }]) {
        const lm = this.spec.lm ? { lm: this.spec.lm } : {};
        const nodes = await this.fetchReport({ model: "needle-grid", ...GRID_OPTIONS, ...lm, longctx }, true, signal);
        nodes.find((node) => node.tagName === "H2").textContent = `Needle grid with ${longctx.method}`;
        this.part("grids").append(...nodes);
      }
    });
    if (this.running.signal === signal) this.showProgress(null);
    this.part("then").disabled = false;
  }

  /** The address of the experiment whose report is shown, whatever the form says by now. */
  get permalink() {
    return `/console/probe?${new URLSearchParams({ model: this.asked, spec: JSON.stringify(this.spec) })}`;
  }

  /** Put the permalink into the address, copy it, and say which of it was done. */
  async updatePermalink() {
    history.replaceState(null, "", this.permalink);
    const isCopied = await copyText(location.href).then(() => true, () => false);
    this.setText("link", isCopied ? "Permalink copied" : "Permalink is in the address bar");
  }
}

customElements.define("fovea-probe", Probe);
