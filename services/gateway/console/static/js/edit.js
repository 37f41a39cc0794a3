/**
 * Corrections by hand of a result: the tool bar, undo and redo, and what of the pointer and the keys is for them. A
 * subclass edits boxes or a mask; corrections stay with the item of the filmstrip, whose answer they replace.
 */

import { locate } from "./canvas.js";

/** Milliseconds after the last correction until the stored run has it. */
const STORE_AFTER_MS = 1200;

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Editor {
  /** What the keys do, for readers of the screen. */
  static keys = "";

  constructor(page) {
    Object.assign(this, { page, canvas: page.part("canvas"), bar: page.part("edit-bar") });
    for (const verb of ["undo", "redo", "reset"]) page.on("click", `edit-${verb}`, () => this[verb]());
    page.on("click", "edit-delete", () => this.remove());
    page.on("click", "edit-done", () => this.toggle());
    this.canvas.addEventListener("pointerdown", (event) => this.press(event));
    this.canvas.addEventListener("pointermove", (event) => this.isOn && this.move(this.place(event), event));
    for (const type of ["pointerup", "pointercancel"]) this.canvas.addEventListener(type, () => this.release());
    page.addEventListener("keydown", (event) => this.isOn && this.onKey(event), { capture: true });
  }

  get isOn() {
    return !this.bar.hidden && Boolean(this.item);
  }

  /** The present picture, if it has an answer. */
  get item() {
    return this.page.current?.answer ? this.page.current : null;
  }

  /** The steps of an item that can be undone, and those that can be done again. */
  get edits() {
    return (this.item.edits ??= { past: [], future: [] });
  }

  toggle() {
    this.bar.hidden = !this.bar.hidden;
    this.page.classList.toggle("editing", this.isOn);
    this.page.part("edit").setAttribute("aria-pressed", String(this.isOn));
    const frame = this.canvas.parentElement;
    frame.setAttribute("aria-description", this.isOn ? this.constructor.keys : "");
    (this.isOn ? frame : this.page.part("edit")).focus();
    this.refresh();
    this.page.redraw();
  }

  /** Show what can be undone; called after each correction, and with another picture. */
  refresh() {
    const { past, future } = this.item ? this.edits : { past: [], future: [] };
    for (const [name, list] of [["undo", past], ["redo", future], ["reset", past]]) this.page.part(`edit-${name}`).disabled = list.length === 0;
  }

  note(words) {
    this.page.setText("edit-note", words);
  }

  /** Pixels of the picture for a pixel of the screen. */
  get grain() {
    const { width, height, clientWidth, clientHeight } = this.canvas;
    return this.page.answer.width / width / Math.min(clientWidth / width, clientHeight / height);
  }

  /** The place of a pointer in pixels of the picture. */
  place(event) {
    const scale = this.page.answer.width / this.canvas.width;
    return locate(event, this.canvas).map((at) => at * scale);
  }

  press(event) {
    if (!this.isOn || event.button !== 0) return;
    event.stopPropagation(); // a drag would pan
    event.preventDefault();
    this.canvas.parentElement.focus({ preventScroll: true });
    this.canvas.setPointerCapture(event.pointerId);
    this.begin(this.place(event), event);
  }

  /** Keys of the picture and its list; nothing while something is typed. */
  onKey(event) {
    const isModified = event.ctrlKey || event.metaKey;
    const key = event.key.toLowerCase();
    if (event.target.matches("textarea, select, input:not([type=range])")) return;
    const isInPicture = event.target.closest("fovea-viewer") !== null; // in the list arrows choose
    if (isModified && (key === "z" || key === "y")) this[key === "y" || event.shiftKey ? "redo" : "undo"]();
    else if (isModified || !(isInPicture || event.target.closest("[data-part=findings]")) || !this.act(key, event, isInPicture && STEPS[event.key])) return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** Remember a step that was done: `{ undo, redo }`. */
  push(step) {
    this.item.original ??= this.item.answer;
    this.edits.past.push(step);
    this.edits.future = [];
  }

  /** Take the last step back, without a word; whether there was one. */
  takeBack() {
    const step = this.edits.past.pop();
    if (!step) return false;
    step.undo();
    this.edits.future.push(step);
    return true;
  }

  undo() {
    if (this.takeBack()) this.showStep("Undone.");
  }

  redo() {
    const { edits } = this;
    const step = edits.future.pop();
    if (!step) return;
    step.redo();
    edits.past.push(step);
    this.showStep("Done again.");
  }

  /** Back to the model's result; each step can be done again. */
  reset() {
    while (this.takeBack());
    this.showStep("The model’s result.");
  }

  showStep(words) {
    this.update();
    this.note(words);
  }

  /** Show the corrected answer, and store it a moment later. */
  update() {
    const { item, page } = this;
    this.correct(item);
    page.answer = item.answer;
    page.showCorrected();
    this.refresh();
    clearTimeout(item.storing);
    item.storing = setTimeout(() => this.store(item).catch(() => {}), STORE_AFTER_MS);
  }

  async store(item) {
    await this.page.settle(item);
    if (item.run) await (await import("./runs.js")).amend(item.run, item.answer);
  }

  /** Make the item's answer say what was corrected. */
  correct(item) {}
}

/** A new result of the model takes the place of a corrected one; undo brings the corrections back. */
export function keepCorrections(item, { answer, original, map, probability, settings, requested, edits }) {
  const step = { undo: () => Object.assign(item, { answer, original, map, probability, settings, requested, edits }), redo: () => {} };
  item.edits = { past: [step], future: [] };
}
