/**
 * The list of jobs, live. A few jobs are followed through server-sent events (browsers open six connections to a host);
 * the list itself is looked at every few seconds, which also finds jobs that somebody else queued.
 */

import { FINAL, jobNote, jobs } from "./submit.js";
import { Part } from "./element.js";
import { save } from "./save.js";

const EVERY_MS = 3000;
const FOLLOWED = 3;

export class Jobs extends Part {
  connectedCallback() {
    this.followed = new Map();
    for (const verb of ["cancel", "retry"]) this.on("click", verb, (_, button) => this.act(verb, button));
    this.on("click", "result", (_, button) => this.result(button));
    this.on("click", "download", (_, button) => this.download(button));
    this.timer = setInterval(() => document.visibilityState === "visible" && this.look(), EVERY_MS);
    this.look();
  }

  disconnectedCallback() {
    clearInterval(this.timer);
    for (const controller of this.followed.values()) controller.abort();
  }

  async look() {
    try {
      const found = await jobs.list();
      this.fault(null);
      this.draw(found);
      found.filter((job) => !FINAL.has(job.status)).forEach((job) => this.follow(job.id));
    } catch (problem) {
      this.fault(problem);
    }
  }

  draw(found) {
    const list = this.part("list");
    found.forEach((job, index) => {
      const row = this.row(job.id) ?? this.newRow(job);
      if (list.children[index] !== row) list.insertBefore(row, list.children[index] ?? null);
      this.update(row, job);
    });
    while (list.children.length > found.length) list.lastElementChild.remove();
    this.show(found.length === 0, "nothing");
    const open = found.filter((job) => !FINAL.has(job.status)).length;
    this.say("count", found.length ? `${found.length} kept, ${open || "none"} under way` : "");
  }

  row(id) {
    return this.querySelector(`[data-job="${CSS.escape(id)}"]`);
  }

  newRow(job) {
    const row = this.copyOf("job");
    row.dataset.job = job.id;
    within(row, "id").textContent = job.id;
    within(row, "path").textContent = job.path;
    within(row, "service").textContent = job.service;
    const time = within(row, "created");
    time.dateTime = job.created;
    time.textContent = new Date(job.created).toLocaleString([], { dateStyle: "medium", timeStyle: "medium" });
    return row;
  }

  update(row, job) {
    const final = FINAL.has(job.status);
    row.className = `job job-${job.status}`;
    within(row, "status").className = `state state-${job.status}`;
    within(row, "status").textContent = job.dead ? "Dead letter" : job.status[0].toUpperCase() + job.status.slice(1);
    within(row, "bar").hidden = final;
    within(row, "bar").value = job.progress;
    within(row, "note").textContent = job.error?.detail ?? (final ? duration(job) : withPercent(job));
    within(row, "cancel").hidden = final;
    within(row, "retry").hidden = !["failed", "cancelled"].includes(job.status);
    for (const name of ["result", "download"]) within(row, name).hidden = job.status !== "succeeded";
  }

  async follow(id) {
    if (this.followed.has(id) || this.followed.size >= FOLLOWED) return;
    const controller = new AbortController();
    this.followed.set(id, controller);
    try {
      for await (const job of jobs.follow(id, controller.signal)) this.row(id) && this.update(this.row(id), job);
    } catch {
      // The list is looked at again anyway; a broken event stream needs no words.
    } finally {
      this.followed.delete(id);
    }
    if (this.isConnected) this.look();
  }

  async act(verb, button) {
    const row = button.closest("[data-job]");
    button.disabled = true;
    try {
      await jobs[verb](row.dataset.job);
      await this.look();
      row.focus();
    } catch (problem) {
      this.fault(problem);
    } finally {
      button.disabled = false;
    }
  }

  async result(button) {
    const row = button.closest("[data-job]");
    const answer = within(row, "answer");
    const open = button.getAttribute("aria-expanded") === "true";
    button.setAttribute("aria-expanded", String(!open));
    answer.hidden = open;
    if (open || answer.childElementCount) return;
    await jobs.result(row.dataset.job).then((response) => answer.draw(response)).catch((problem) => this.fault(problem));
  }

  async download(button) {
    const { job } = button.closest("[data-job]").dataset;
    try {
      const blob = await (await jobs.result(job)).blob();
      save(blob, `${job}.${blob.type.split(/[/;+]/)[1] ?? "bin"}`);
    } catch (problem) {
      this.fault(problem);
    }
  }
}

const within = (row, name) => row.querySelector(`[data-part="${name}"]`);

const withPercent = (job) => (job.status === "running" ? `${jobNote(job)} · ${Math.round(job.progress * 100)} %` : jobNote(job));

function duration(job) {
  if (!job.started || !job.finished) return "";
  const seconds = (new Date(job.finished) - new Date(job.started)) / 1000;
  return `${job.status === "succeeded" ? "Took" : "After"} ${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
}
