/**
 * Jobs page: the list is fetched every few seconds. Server-sent events would each hold one of the six connections that
 * a browser opens to a host, in all tabs together.
 */

import { describeEta } from "./eta.js";
import { FINAL, jobNote, jobs } from "./submit.js";
import { CustomElement, partOf, putText } from "./custom_element.js";
import { endingOf, save } from "./save.js";
import "./result_view.js";

const POLL_INTERVAL_MS = 3000;

/** Most jobs that the page shows, as many as the gateway lists at once. */
const MOST = 500;

export class Jobs extends CustomElement {
  connectedCallback() {
    this.addEventListener("click", ({ target }) => target.closest("button") && this.showError(null));
    this.on("input", "filters", () => this.filter());
    this.on("submit", "filters", (event) => event.preventDefault());
    this.on("click", "cancel-all", () => this.runOnShown("cancel", (row) => !FINAL.has(row.dataset.status)));
    this.on("click", "delete-all", () => this.runOnShown("remove", (row) => FINAL.has(row.dataset.status)));
    for (const verb of ["cancel", "retry"]) this.on("click", verb, (_, button) => this.runAction(verb, button));
    this.on("click", "result", (_, button) => this.toggleResult(button));
    this.on("click", "download", (_, button) => this.download(button));
    this.timer = setInterval(() => document.visibilityState === "visible" && this.refresh(), POLL_INTERVAL_MS);
    this.refresh();
  }

  disconnectedCallback() {
    clearInterval(this.timer);
  }

  async refresh() {
    try {
      const found = await jobs.list(MOST);
      if (this.isUnreachable) this.showError(null); // what a button could not do stays told
      this.isUnreachable = false;
      this.draw(found);
    } catch (problem) {
      this.isUnreachable = true;
      this.showError(problem);
    }
  }

  draw(found) {
    this.all = found;
    const list = this.part("list");
    found.forEach((job, index) => {
      const row = this.findRow(job.id) ?? this.createRow(job);
      if (list.children[index] !== row) list.insertBefore(row, list.children[index] ?? null);
      this.update(row, job);
    });
    while (list.children.length > found.length) list.lastElementChild.remove();
    this.show(found.length === 0, "nothing");
    const open = found.filter((job) => !FINAL.has(job.status)).length;
    this.setText("count", found.length ? `${found.length === MOST ? `${MOST} newest jobs` : `${found.length} job${found.length === 1 ? "" : "s"}`}, ${open || "none"} running` : "");
    this.show(found.length > 0, "filters");
    if (location.hash && !this.hasScrolled) {
      this.hasScrolled = true;
      document.getElementById(location.hash.slice(1))?.scrollIntoView({ block: "center" });
    }
    this.filter();
  }

  /** Show only jobs of a state whose words fit the search. */
  filter() {
    const { query, status } = this.part("filters").elements;
    const words = query.value.toLowerCase();
    for (const row of this.part("list").children) {
      row.hidden = (status.value && row.dataset.status !== status.value) || !`${row.textContent} ${row.dataset.job}`.toLowerCase().includes(words);
    }
  }

  /** Do something with all jobs that are shown and fit; each that fails says so. */
  async runOnShown(verb, fits) {
    const rows = [...this.part("list").children].filter((row) => !row.hidden && fits(row));
    await this.attempt(() => Promise.all(rows.map((row) => jobs[verb](row.dataset.job))));
    await this.refresh();
  }

  findRow(id) {
    return this.querySelector(`[data-job="${CSS.escape(id)}"]`);
  }

  createRow(job) {
    const row = this.cloneTemplate("job");
    row.dataset.job = job.id;
    partOf(row, "id").textContent = job.id;
    partOf(row, "title").textContent = titleOf(job);
    partOf(row, "path").textContent = job.path.split("?")[0];
    partOf(row, "service").textContent = job.service;
    row.id = job.id;
    const page = JSON.parse(this.dataset.pages)[job.path.split("?")[0].replace(/^\/v1\/probe\/.*/, "/v1/probe")];
    if (page) partOf(row, "open").href = `${page}?job=${encodeURIComponent(job.id)}`;
    const time = partOf(row, "created");
    time.dateTime = job.created;
    time.textContent = new Date(job.created).toLocaleString([], { dateStyle: "medium", timeStyle: "medium" });
    return row;
  }

  update(row, job) {
    const final = FINAL.has(job.status);
    row.className = `job job-${job.status}`;
    row.dataset.status = job.status;
    partOf(row, "status").className = `state state-${job.status}`;
    putText(partOf(row, "status"), job.dead ? "Failed, no more retries" : job.status[0].toUpperCase() + job.status.slice(1));
    partOf(row, "bar").hidden = final;
    partOf(row, "bar").value = job.progress;
    putText(partOf(row, "note"), job.error?.detail ?? (final ? duration(job) : describeProgress(job, this.all)));
    partOf(row, "cancel").hidden = final;
    partOf(row, "retry").hidden = !["failed", "cancelled"].includes(job.status);
    for (const name of ["result", "download"]) partOf(row, name).hidden = job.status !== "succeeded";
    partOf(row, "open").hidden = job.status !== "succeeded" || !partOf(row, "open").hasAttribute("href");
  }

  async runAction(verb, button) {
    const row = button.closest("[data-job]");
    button.disabled = true;
    try {
      await jobs[verb](row.dataset.job);
      await this.refresh();
      row.focus();
    } catch (problem) {
      this.showError(problem);
    } finally {
      button.disabled = false;
    }
  }

  async toggleResult(button) {
    const row = button.closest("[data-job]");
    const answer = partOf(row, "answer");
    const open = button.getAttribute("aria-expanded") === "true";
    button.setAttribute("aria-expanded", String(!open));
    answer.hidden = open;
    if (open || answer.childElementCount) return;
    await jobs.result(row.dataset.job).then((response) => answer.draw(response)).catch((problem) => this.showError(problem));
  }

  async download(button) {
    const { job } = button.closest("[data-job]").dataset;
    try {
      const blob = await (await jobs.result(job)).blob();
      save(blob, `${job}.${endingOf(blob)}`);
    } catch (problem) {
      this.showError(problem);
    }
  }
}

/** A job's title: the last part of its path in words. */
function titleOf({ path }) {
  const words = path.split("?")[0].replace("/v1/", "").replaceAll(/[-_/]+/g, " ");
  return words[0].toUpperCase() + words.slice(1);
}

const describeProgress = (job, all) => [jobNote(job), job.status === "running" && `${Math.round(job.progress * 100)} %`, describeEta(job, all)].filter(Boolean).join(" · ");

function duration(job) {
  if (!job.started || !job.finished) return "";
  const seconds = (new Date(job.finished) - new Date(job.started)) / 1000;
  return `${job.status === "succeeded" ? "Took" : "After"} ${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
}

customElements.define("fovea-jobs", Jobs);
