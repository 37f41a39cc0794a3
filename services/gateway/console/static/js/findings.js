/**
 * List of what was found in the present picture: each region or box with its numbers. The pointer and the keys J and K
 * choose one and highlight it in the picture, A accepts and X rejects it; the verdicts are exported with the findings.
 */

import { createButton, createNode } from "./custom_element.js";
import { listRows, writeCsv } from "./export_all.js";
import { save } from "./save.js";

const VERDICTS = { a: "accepted", x: "rejected" };

export class Findings {
  /** `page` draws with `page.redraw()`, and highlights `page.highlight` if it is not null. */
  constructor(page) {
    this.page = page;
    this.part = page.part("findings");
    this.list = createNode("ol", "findings-list");
    this.list.setAttribute("aria-label", "Findings; A accepts, X rejects");
    this.list.tabIndex = 0;
    this.export = createButton("Findings as CSV", () => this.save());
    this.part.append(this.list, this.export);
    this.list.addEventListener("pointerover", ({ target }) => this.choose([...this.list.children].indexOf(target.closest("li")), false));
    this.list.addEventListener("pointerleave", () => this.choose(-1, false));
    this.list.addEventListener("click", ({ target }) => target.dataset.verdict && this.judge(target.dataset.verdict));
    this.page.addEventListener("keydown", (event) => this.onKey(event));
  }

  /** Show entries `{ words, box, row }`; verdicts stay with the item of the filmstrip. */
  show(entries, item) {
    item.verdicts ??= new Map();
    Object.assign(this, { entries, item });
    this.part.hidden = entries.length === 0;
    this.list.replaceChildren(...entries.map((entry, at) => this.createEntry(entry, at)));
    this.page.highlight = null;
  }

  createEntry({ words, key }, at) {
    const verdict = this.item.verdicts.get(key);
    const buttons = Object.entries({ accepted: "✓", rejected: "✗" }).map(([name, sign]) => {
      const button = createButton(sign, () => {}, "quiet small");
      button.dataset.verdict = name;
      button.tabIndex = -1;
      button.setAttribute("aria-label", name === "accepted" ? "Accept" : "Reject");
      button.setAttribute("aria-pressed", String(verdict === name));
      return button;
    });
    const entry = createNode("li", "finding", createNode("span", "figures", words), createNode("span", "", ...buttons));
    entry.id = `finding-${at}`;
    entry.dataset.state = verdict ?? "";
    return entry;
  }

  choose(index, scroll = true) {
    const isIn = index >= 0 && index < this.entries.length;
    this.chosen = isIn ? index : null;
    [...this.list.children].forEach((entry, at) => entry.setAttribute("aria-current", String(at === this.chosen)));
    if (isIn && scroll) this.list.children[index].scrollIntoView({ block: "nearest" });
    this.page.highlight = isIn ? this.entries[index] : null;
    this.page.redraw();
  }

  judge(verdict) {
    if (this.chosen === null || this.chosen === undefined) return;
    const { key } = this.entries[this.chosen];
    this.item.verdicts.set(key, this.item.verdicts.get(key) === verdict ? "" : verdict);
    const { chosen } = this;
    this.list.children[chosen].replaceWith(this.createEntry(this.entries[chosen], chosen));
    this.choose(chosen);
  }

  onKey(event) {
    if (event.target.matches("input, textarea, select") || event.ctrlKey || event.metaKey || event.altKey || !this.entries?.length) return;
    const step = { j: 1, k: -1 }[event.key];
    if (step) this.choose(this.chosen == null ? 0 : (this.chosen + step + this.entries.length) % this.entries.length);
    else if (VERDICTS[event.key]) this.judge(VERDICTS[event.key]);
    else return;
    event.preventDefault();
  }

  /** The findings of the present picture with their verdicts, as a file. */
  save() {
    const text = writeCsv(listRows(this.page, this.item));
    save(new Blob([text], { type: "text/csv" }), `${this.page.stem}.findings.csv`);
  }
}
