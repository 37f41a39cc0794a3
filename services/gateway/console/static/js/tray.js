/** The job tray of the top bar: how many jobs run, and the newest with their progress, on every page. */

import { createNode, CustomElement } from "./custom_element.js";
import { describeEta } from "./eta.js";
import { FINAL, jobNote, jobs } from "./submit.js";

const POLL_MS = 4000;
const MOST = 8;

class Tray extends CustomElement {
  connectedCallback() {
    document.addEventListener("fovea-job", () => this.refresh());
    this.on("click", "open-tray", () => this.refresh());
    this.refresh();
  }

  async refresh() {
    clearTimeout(this.timer);
    const found = await jobs.list().catch(() => []); // without a queue or the scope there are no jobs to show
    const open = found.filter((job) => !FINAL.has(job.status)).length;
    this.setText("tray-count", String(open));
    this.show(open > 0, "tray-count");
    this.part("open-tray").setAttribute("aria-label", open ? `Jobs, ${open} running` : "Jobs");
    this.show(found.length === 0, "tray-empty");
    const list = this.part("tray-list");
    const { href } = list.contains(document.activeElement) ? document.activeElement : {};
    list.replaceChildren(...found.slice(0, MOST).map((job) => createEntry(job, found)));
    if (href) [...list.querySelectorAll("a")].find((link) => link.href === href)?.focus();
    if (open) this.timer = setTimeout(() => this.refresh(), POLL_MS);
  }
}

function createEntry(job, all) {
  const link = createNode("a", "", job.path.split("?")[0].replace("/v1/", ""));
  link.href = `/console/jobs#${job.id}`;
  const bar = createNode("progress", "");
  Object.assign(bar, { max: 1, value: job.progress, hidden: FINAL.has(job.status) });
  bar.setAttribute("aria-label", "Progress");
  return createNode("li", "tray-job", link, createNode("span", `state state-${job.status}`, [jobNote(job) ?? job.status, describeEta(job, all)].filter(Boolean).join(" · ")), bar);
}

customElements.define("fovea-tray", Tray);
