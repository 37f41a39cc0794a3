/**
 * List of what was found in the present picture: each region or box with its numbers. A click and the keys J and K
 * choose one and highlight it in the picture, A accepts and X rejects it; the verdicts are exported with the findings.
 */

import { createButton, createNode } from "./custom_element.js";
import { exportTable } from "./export_all.js";
import { save } from "./save.js";

/** Name of a finding that a correction by hand keeps; no file has it. */
export const KEY = Symbol("key");

export const keyOf = (found) => found[KEY] ?? found.box.join();

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
    const indexOf = ({ target }) => [...this.list.children].indexOf(target.closest("li"));
    this.list.addEventListener("pointermove", (event) => indexOf(event) !== this.chosen && this.highlight(indexOf(event)));
    this.list.addEventListener("pointerleave", () => this.highlight(this.pinned ?? -1));
    this.list.addEventListener("click", (event) => {
      this.choose(indexOf(event));
      if (event.target.dataset.verdict) this.judge(event.target.dataset.verdict);
    });
    this.page.addEventListener("keydown", (event) => this.onKey(event));
  }

  /** Show entries `{ key, words, box, row }`; verdicts stay with the item of the filmstrip. */
  show(entries, item) {
    item.verdicts ??= new Map();
    Object.assign(this, { entries, item, chosen: null, pinned: null });
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

  /** Choose an entry until another one is chosen. */
  choose(index) {
    this.highlight(index);
    this.pinned = this.chosen;
    const entry = this.list.children[index]?.getBoundingClientRect();
    const { top, bottom } = this.list.getBoundingClientRect();
    if (entry) this.list.scrollTop += Math.min(0, entry.top - top) + Math.max(0, entry.bottom - bottom); // the page stays
  }

  chooseKey(key) {
    this.choose(this.entries.findIndex((entry) => entry.key === key));
  }

  /** Show an entry as the present one. */
  highlight(index) {
    const isIn = index >= 0 && index < this.entries.length;
    this.chosen = isIn ? index : null;
    [...this.list.children].forEach((entry, at) => entry.setAttribute("aria-current", String(at === this.chosen)));
    this.page.highlight = isIn ? this.entries[index] : null;
    this.page.editor?.showClass?.();
    this.page.redraw();
  }

  judge(verdict) {
    if (this.chosen === null) return;
    const { key } = this.entries[this.chosen];
    this.item.verdicts.set(key, this.item.verdicts.get(key) === verdict ? "" : verdict);
    this.list.children[this.chosen].replaceWith(this.createEntry(this.entries[this.chosen], this.chosen));
    this.choose(this.chosen);
  }

  onKey(event) {
    if (event.target.matches("input, textarea, select") || event.ctrlKey || event.metaKey || event.altKey || !this.entries?.length) return;
    const step = { j: 1, k: -1, ...(event.target === this.list && { ArrowDown: 1, ArrowUp: -1 }) }[event.key];
    const from = this.pinned ?? this.chosen;
    if (step) this.choose(from === null ? 0 : (from + step + this.entries.length) % this.entries.length);
    else if (VERDICTS[event.key]) this.judge(VERDICTS[event.key]);
    else return;
    event.preventDefault();
  }

  /** The findings of the present picture with their verdicts, as a file. */
  save() {
    save(exportTable(this.page, [this.item]), `${this.page.stem}.findings.csv`);
  }
}
