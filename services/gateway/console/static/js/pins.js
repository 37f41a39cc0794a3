/** Pinned runs of experiments: kept in this browser beyond the history's limit, and compared two at a time. */

import { createNode, CustomElement } from "./custom_element.js";
import { readReport } from "./report.js";
import { listPinned, pin } from "./runs.js";

class Pins extends CustomElement {
  connectedCallback() {
    this.on("change", "list", () => this.attempt(() => this.compare()));
    this.on("click", "unpin", (_, button) => this.attempt(async () => {
      await pin(button.closest("li").dataset.run, false);
      await this.load();
    }));
    document.addEventListener("fovea-pinned", () => this.attempt(() => this.load()));
    this.attempt(() => this.load());
  }

  async load() {
    this.runs = await listPinned().catch(() => []);
    this.hidden = this.runs.length === 0;
    this.part("list").replaceChildren(...this.runs.map((run) => this.createEntry(run)));
    await this.compare();
  }

  createEntry(run) {
    const entry = this.cloneTemplate("pin");
    entry.dataset.run = run.id;
    entry.querySelector("input").value = run.id;
    entry.querySelector("a").href = `/runs/${run.id}`;
    entry.querySelector("a").textContent = run.model;
    entry.querySelector(".muted").textContent = `${describe(run.request)} · ${new Date(run.time).toLocaleString([], { dateStyle: "medium", timeStyle: "short" })}`;
    return entry;
  }

  /** Show the two runs that are ticked: their numbers in one table, their reports side by side. */
  async compare() {
    const ids = [...this.part("list").querySelectorAll(":checked")].map(({ value }) => value);
    for (const box of this.part("list").querySelectorAll("input")) box.disabled = ids.length === 2 && !box.checked;
    this.show(ids.length === 2, "comparison");
    this.setText("pin-note", ids.length === 2 ? "" : this.runs.length > 1 ? "Tick two runs to compare them." : "Pin another run to compare the two.");
    if (ids.length !== 2) return;
    const reports = ids.map((id) => createNode("article", "report", ...readReport(this.runs.find((run) => run.id === id).html)));
    this.part("reports").replaceChildren(...reports);
    this.part("numbers").replaceChildren(...listNumbers(reports));
  }
}

/** The options of a run in which two runs are likely to differ. */
const describe = ({ model, text, ...options }) => [text?.slice(0, 40), ...Object.entries(options).map(([name, value]) => `${name} ${JSON.stringify(value).slice(0, 30)}`)].filter(Boolean).join(", ");

/** Rows of the numbers that both reports state: the name, both values and their difference. */
function listNumbers(reports) {
  const [first, second] = reports.map((report) => new Map([...report.querySelectorAll("table:not(:has(thead)) tr")].map((row) => [row.cells[0].textContent, row.cells[1]?.textContent.trim() ?? ""])));
  return [...first].filter(([name]) => second.has(name)).map(([name, value]) => {
    const [a, b] = [parseFloat(value), parseFloat(second.get(name))];
    const difference = Number.isFinite(a) && Number.isFinite(b) ? Number((b - a).toPrecision(4)).toString() : "–";
    return createNode("tr", "", createNode("th", "", name), ...[value, second.get(name), difference].map((text) => createNode("td", "num", text)));
  });
}

customElements.define("fovea-pins", Pins);
