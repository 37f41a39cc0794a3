/** Page of runs: the list with a search, or one run with its input, options, answer, model, seed and time. */

import { createNode, CustomElement } from "./custom_element.js";
import { list, load, remove } from "./runs.js";
import { readReport } from "./report.js";
import { formatSeconds } from "./eta.js";
import { saveJson } from "./save.js";
import "./result_view.js";

const RECENT = 4;

class Runs extends CustomElement {
  connectedCallback() {
    this.on("input", "query", () => this.filter());
    this.on("click", "delete", () => this.attempt(() => this.deleteRun()));
    this.on("click", "keep", () => saveJson(this.run, `run-${this.run.id}.json`));
    this.attempt(() => (this.dataset.run ? this.showRun(this.dataset.run) : this.showList()));
  }

  async showList() {
    const runs = await list();
    this.show(runs.length > 0, "listing");
    this.show(runs.length === 0, "nothing");
    this.part("list").replaceChildren(...runs.map(createEntry));
    this.filter();
  }

  filter() {
    const words = this.part("query").value.toLowerCase();
    for (const entry of this.part("list").children) entry.hidden = !entry.textContent.toLowerCase().includes(words);
  }

  async showRun(id) {
    const run = await load(id);
    this.show(!run, "missing");
    if (!run) return;
    this.run = run;
    document.title = `${run.title} · Fovea`;
    this.setText("title", run.title);
    const facts = {
      Model: run.model, Version: run.version, Seed: run.seed, Time: new Date(run.time).toLocaleString([], { dateStyle: "medium", timeStyle: "medium" }),
      Took: run.milliseconds ? (run.milliseconds < 1000 ? `${run.milliseconds} ms` : formatSeconds(run.milliseconds / 1000)) : undefined,
      Input: run.input, Request: run.path, Job: run.job,
    };
    const known = Object.entries(facts).filter(([, value]) => value !== undefined && value !== null && value !== "");
    this.part("facts").replaceChildren(...known.map(([name, value]) => createNode("div", "", createNode("dt", "", name), createNode("dd", "figures", String(value)))));
    this.part("input").hidden = !run.thumbnail;
    if (run.thumbnail) Object.assign(this.part("input"), { src: run.thumbnail, alt: run.input });
    this.part("options").textContent = JSON.stringify(run.request, null, 2);
    this.part("open").href = openUrl(run);
    await this.showAnswer(run);
    this.show(true, "one");
  }

  async showAnswer({ answer, html }) {
    if (html) {
      this.part("report").replaceChildren(...readReport(html));
      this.show(true, "report");
    } else this.part("answer").drawJson(answer);
  }

  async deleteRun() {
    await remove(this.run.id);
    location.assign("/runs");
  }
}

/** The page of a run's task, which shows the run again if it can. */
function openUrl({ page, id, request }) {
  const query = new URLSearchParams({ ...(request?.model && { model: request.model }), run: id });
  if (page === "/console/probe") query.set("spec", JSON.stringify(request));
  return `${page}?${query}`;
}

function createEntry(run) {
  const link = createNode("a", "run-link", run.title);
  link.href = `/runs/${run.id}`;
  const time = createNode("time", "muted", new Date(run.time).toLocaleString([], { dateStyle: "medium", timeStyle: "short" }));
  time.dateTime = run.time;
  const picture = createNode("img", "run-picture");
  picture.alt = "";
  if (run.thumbnail) picture.src = run.thumbnail;
  else picture.hidden = true;
  return createNode("li", "run-entry", picture, createNode("div", "", link, createNode("p", "muted", [run.model, run.input].filter(Boolean).join(" · ")), time));
}

/** The last runs on the front page; hidden while there are none. */
class RecentRuns extends CustomElement {
  async connectedCallback() {
    const runs = await list().catch(() => []);
    this.part("list").replaceChildren(...runs.slice(0, RECENT).map(createEntry));
    this.hidden = runs.length === 0;
  }
}

customElements.define("fovea-runs", Runs);
customElements.define("fovea-recent-runs", RecentRuns);
