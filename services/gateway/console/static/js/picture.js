/**
 * Base class of pages that send pictures: choosing them, checking and scaling them, sending one after the other, and
 * the filmstrip. A page only draws the answer of the present picture.
 */

import { decodeBase64, fillForm, selectedModel, readValues } from "./form.js";
import { decodePicture, fitSize } from "./canvas.js";
import { openFiles } from "./addons.js";
import { exportAll } from "./export_all.js";
import { Filmstrip } from "./filmstrip.js";
import { describeSize, findExcess, measurePicture, scalePicture } from "./picture_size.js";
import { call } from "./gateway.js";
import { RunForm } from "./run_form.js";
import "./drop.js";
import "./viewer.js";

/** Pixels that a picture is scaled to where the request would take too long. */
const QUICK_PIXELS = 2_000_000;

/** Longest side of a picture in a comparison of models. */
const MAX_COMPARED_SIDE = 1280;

export class PicturePage extends RunForm {
  /** Note beside a picture that the browser can't show. */
  static hiddenNote = "";

  static answerParts = [];

  /** Module that corrects a result by hand; its `create(page)` returns an `Editor`. */
  static editor = null;

  connectedCallback() {
    super.connectedCallback();
    this.items = [];
    this.strip = new Filmstrip(this.part("filmstrip"), this);
    this.addEventListener("fovea-pictures", (event) => this.addFiles(event.detail));
    this.on("click", "choose", () => this.part("file").click());
    this.on("click", "stop", ({ detail }) => detail < 2 && this.items.forEach((item) => item.status === "waiting" && (item.status = "stopped")));
    this.on("click", "compare", () => this.attempt(async () => (await import("./compare.js")).open(this)));
    this.on("click", "edit", () => this.attempt(async () => {
      this.editor ??= (await import(this.constructor.editor)).create(this);
      this.editor.toggle();
    }));
    this.on("click", "export-all", (_, button) => this.attempt(async () => (button.dataset.module ? (await import(button.dataset.module)).exportAll : exportAll)(this, button.dataset.form)));
  }

  /** What was found in the picture of an item: `{ key, words, box, row }` each. */
  describeFindings(item) {
    return [];
  }

  /** What was deleted by hand of an item's result, as findings. */
  describeDeleted(item) {
    return [];
  }

  /** Make the answer of an item what is shown, before it leaves the page. */
  async settle(item) {}

  /** Files of an item's answer for the archive: `{ name, blob }` each. */
  async describeFiles(item) {
    return [];
  }

  get file() {
    return this.current?.file;
  }

  get stem() {
    return this.file?.name.replace(/\.[^.]*$/, "") || "picture";
  }

  /** Add pictures, show the first of them, and send all. A single one replaces a single one that was not corrected. */
  async addFiles(files) {
    if (files.length === 1 && (await this.completes(files[0]))) return;
    const items = await openFiles(this, files);
    if (!items.length) return;
    if (files.length === 1 && this.items.length === 1 && !this.current.edits?.past.length) this.items = [];
    this.items.push(...items);
    await this.select(items[0]);
    await this.runWaiting();
  }

  /** Show a picture, with its answer or error if it has one. */
  async select(item) {
    this.showError(null);
    this.setText("edit-note", "");
    this.current = item;
    this.picture = null;
    this.clearAnswer();
    this.strip.draw();
    this.show(this.comparison?.item === item, "comparison-result"); // that of another picture says nothing of this one
    const picture = await decodePicture(item.file);
    if (this.current !== item) return;
    this.picture = picture;
    this.comparison?.redraw();
    if (picture) item.size = { width: picture.width, height: picture.height };
    this.showName();
    this.show(false, "drop", "result");
    this.show(true, "viewer");
    this.part("go").disabled = Boolean(item.lacksFile);
    this.showPicture();
    if (item.answer) await this.receive(item.answer, item.milliseconds);
    else if (item.problem) this.showFailure(item.problem);
    this.editor?.refresh();
  }

  showName() {
    const { file, size, answer, lacksFile } = this.current;
    const note = size ? `, ${size.width} × ${size.height}` : lacksFile ? ": add its image to see it here" : answer ? ` (${this.constructor.hiddenNote})` : "";
    this.setText("name", file.name + note);
    this.show(Boolean(answer), "edit");
  }

  async useExample() {
    const { image } = await this.fetchExample();
    const blob = decodeBase64(image);
    await this.addFiles([new File([blob], "example", { type: blob.type })]);
  }

  /** Send the present picture again. */
  run() {
    if (!this.current || this.current.lacksFile) return undefined;
    if (this.target?.status === "running") this.target.status = "waiting"; // what runs gives way, and comes next
    this.current.status = "waiting";
    this.running?.abort();
    return this.runWaiting();
  }

  /** Send all pictures that wait, the present one first. */
  runWaiting() {
    this.loop ??= this.runAll().finally(() => (this.loop = null));
    return this.loop;
  }

  async runAll() {
    for (;;) {
      const waits = (item) => item.status === "waiting";
      const item = [this.current].find(waits) ?? this.items.find(waits);
      if (!item) return;
      this.target = item;
      item.status = "running";
      this.strip.draw();
      await super.run();
      if (item.status === "running") item.status = "stopped"; // it was aborted
      this.strip.draw();
    }
  }

  async request(signal) {
    const item = this.target;
    item.size ??= await measurePicture(item.file);
    const excess = findExcess(item, this.dataset);
    if (excess) throw excess;
    const { settings } = this;
    const response = await this.send(this.dataset.path, { body: this.buildBody(item.file), signal });
    const before = { ...item };
    Object.assign(item, { settings, requested: settings, answer: await response.json(), milliseconds: this.milliseconds, status: "done", problem: null });
    Object.assign(item, { original: null, map: null, probability: null, edits: null });
    const wasCorrected = before.edits?.past.length > 0;
    if (wasCorrected) (await import("./edit.js")).keepCorrections(item, before);
    if (item === this.current) {
      await this.receive(item.answer, item.milliseconds);
      this.showName();
      this.editor?.refresh();
      if (wasCorrected) this.editor.note("This is a new result of the model. Undo brings your corrections back.");
    }
    this.rememberItem(item).catch(() => {}); // a history that can't be written must not hide an answer
  }

  async rememberItem(item) {
    const request = { model: selectedModel(this), ...this.requestOptions };
    const run = await this.remember({ path: this.dataset.path, request, answer: item.answer, file: item.file });
    item.run = run?.id;
    if (item !== this.current || !run) return;
    const url = new URL(location.href);
    url.searchParams.set("run", run.id);
    history.replaceState(null, "", url);
  }

  /** Show a run or job: its options, answer and picture. A job from elsewhere has no picture; it can be dropped here. */
  async showStored({ id, file, request, answer, milliseconds, job }) {
    if (this.items.length || !answer) return;
    const unused = fillForm(this.form, request ?? {});
    for (const name of ["threshold", "iou"]) if (name in unused && this.part(name)) this.part(name).value = unused[name];
    const item = { file: file ?? new File([], `Job ${job ?? ""}`), lacksFile: !file, answer, milliseconds, status: "done", run: id, settings: this.settings, requested: this.settings };
    this.items = [item];
    await this.select(item);
  }

  /** Whether a picture that was added is the one of a job that came without; then it is shown with the job's answer. */
  async completes(file) {
    const item = this.current;
    if (!item?.lacksFile) return false;
    const size = await measurePicture(file);
    if (size?.width !== item.answer.width || size?.height !== item.answer.height) return false;
    Object.assign(item, { file, size, lacksFile: false });
    await this.select(item);
    return true;
  }

  showProblem(problem) {
    const { target } = this;
    if (problem.name !== "AbortError" && target?.status === "running") Object.assign(target, { status: "failed", problem, answer: null });
    if (target === this.current) this.showFailure(problem);
  }

  /** Show what went wrong with the present picture. */
  showFailure(problem) {
    super.showProblem(problem);
    if (!this.picture && problem.status === 415) this.rejectFile();
  }

  /** Ask for another file in place of one that is no picture. */
  rejectFile() {
    this.show(false, "viewer");
    this.show(true, "drop");
    this.part("go").disabled = true;
  }

  actionsFor(problem, wantsJob) {
    const actions = super.actionsFor(problem, wantsJob);
    const [item, verb] = [this.current, this.part("go").textContent.trim().toLowerCase()];
    const scaled = async (bounds) => {
      await scalePicture(item, bounds);
      Object.assign(item, { status: "waiting", problem: null });
      await this.select(item);
      await this.runWaiting();
    };
    if (problem.bounds && this.picture) actions.push([`Scale to ${describeSize(problem.bounds, item)} and ${verb}`, () => scaled(problem.bounds)]);
    else if (wantsJob && item?.size && item.size.width * item.size.height > QUICK_PIXELS) {
      actions.push([`Scale to 2 MP and ${verb}`, () => scaled({ pixels: QUICK_PIXELS })]);
    }
    return actions;
  }

  /** Send a picture to another model, with its default options and those that the page has controls for. */
  sendAs(model, file) {
    const options = model === selectedModel(this) ? this.requestOptions : this.pageOptions;
    return call(this.dataset.path, { method: "POST", body: this.buildBody(file, model, options) });
  }

  /** What a comparison of models needs of an answer: `{ answer, size }` at least. */
  async prepare(answer) {
    return { answer, size: fitSize(answer.width, answer.height, MAX_COMPARED_SIDE) };
  }

  /** The request as multipart: the picture's bytes as they are. */
  buildBody(file = this.file, model = selectedModel(this), options = this.requestOptions) {
    const body = new FormData();
    body.append("model", model);
    for (const [name, value] of Object.entries(options)) {
      body.append(name, typeof value === "string" ? value : JSON.stringify(value));
    }
    if (file) body.append("image", file, file.name);
    return body;
  }

  async describeRequest() {
    return { path: this.dataset.path, body: this.buildBody(this.file ?? new File([], "picture.jpg")) };
  }

  /** The options of the form. */
  get options() {
    return readValues(this.part("options"));
  }

  /** The options of a request: of the form, and those that the page has other controls for. */
  get requestOptions() {
    return { ...this.options, ...this.pageOptions };
  }

  get pageOptions() {
    return {};
  }

  /** Drop the last answer. */
  clearAnswer() {}

  /** Show the picture before there is an answer. */
  showPicture() {}

  /** Show an answer that took so many milliseconds. */
  async receive(answer, milliseconds) {}

  setBusy(on) {
    const [target, left] = [this.target, this.items.filter(({ status }) => status === "waiting").length];
    super.setBusy(on);
    if (on && target !== this.current && this.current.problem) this.showFailure(this.current.problem); // that was hidden
    if (on && this.items.length > 1) this.setText("progress-note", `${this.constructor.progressLabel} ${target.file.name}${left ? `, ${left} more` : ""}`);
  }
}
