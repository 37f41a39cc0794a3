/**
 * Base class of pages that send pictures: choosing them, checking and scaling them, sending one after the other, and
 * the filmstrip. A page only draws the answer of the present picture.
 */

import { decodeBase64, selectedModel, readValues } from "./form.js";
import { decodePicture } from "./canvas.js";
import { exportAll } from "./export_all.js";
import { Filmstrip } from "./filmstrip.js";
import { describeSize, findExcess, measurePicture, scalePicture } from "./picture_size.js";
import { RunForm } from "./run_form.js";
import "./drop.js";
import "./viewer.js";

/** Pixels that a picture is scaled to where the request would take too long. */
const QUICK_PIXELS = 2_000_000;

export class PicturePage extends RunForm {
  /** Note beside a picture that the browser can't show. */
  static hiddenNote = "";

  static answerParts = [];

  connectedCallback() {
    super.connectedCallback();
    this.items = [];
    this.strip = new Filmstrip(this.part("filmstrip"), this);
    this.addEventListener("fovea-pictures", (event) => this.addFiles(event.detail));
    this.on("click", "choose", () => this.part("file").click());
    this.on("click", "stop", () => this.items.forEach((item) => item.status === "waiting" && (item.status = "stopped")));
    this.on("click", "export-all", (_, button) => this.attempt(() => exportAll(this, button.dataset.form)));
    this.openRun();
  }

  /** What was found in the picture of an item: `{ key, words, box, row }` each. */
  describeFindings(item) {
    return [];
  }

  /** Files of an item's answer for the archive: `{ name, blob }` each. */
  describeFiles(item) {
    return [];
  }

  get file() {
    return this.current?.file;
  }

  get stem() {
    return this.file?.name.replace(/\.[^.]*$/, "") || "picture";
  }

  /** Add pictures, show the first of them, and send all. A single one replaces a single one. */
  async addFiles(files) {
    if (files.length === 1 && this.items.length === 1) this.items = [];
    const items = files.map((file) => ({ file, status: "waiting" }));
    this.items.push(...items);
    await this.select(items[0]);
    await this.runWaiting();
  }

  /** Show a picture, with its answer or error if it has one. */
  async select(item) {
    this.showError(null);
    this.current = item;
    this.picture = null;
    this.clearAnswer();
    this.strip.draw();
    const picture = await decodePicture(item.file);
    if (this.current !== item) return;
    this.picture = picture;
    if (picture) item.size = { width: picture.width, height: picture.height };
    this.showName();
    this.show(false, "drop", "result");
    this.show(true, "viewer");
    this.part("go").disabled = false;
    this.showPicture();
    if (item.answer) await this.receive(item.answer, item.milliseconds);
    else if (item.problem) this.showProblem(item.problem);
  }

  showName() {
    const { file, size, answer } = this.current;
    const note = size ? `, ${size.width} × ${size.height}` : answer ? ` (${this.constructor.hiddenNote})` : "";
    this.setText("name", file.name + note);
  }

  async useExample() {
    const { image } = await this.fetchExample();
    const blob = decodeBase64(image);
    await this.addFiles([new File([blob], "example", { type: blob.type })]);
  }

  /** Send the present picture again. */
  run() {
    if (!this.current) return undefined;
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
    const response = await this.send(this.dataset.path, { body: this.buildBody(item.file), signal });
    Object.assign(item, { answer: await response.json(), milliseconds: this.milliseconds, status: "done", problem: null });
    if (item === this.current) {
      await this.receive(item.answer, item.milliseconds);
      this.showName();
    }
    this.rememberItem(item).catch(() => {}); // a history that can't be written must not hide an answer
  }

  async rememberItem(item) {
    const request = { model: selectedModel(this), ...this.requestOptions };
    const run = await this.remember({ path: this.dataset.path, request, answer: item.answer, file: item.file });
    if (item !== this.current || !run) return;
    const url = new URL(location.href);
    url.searchParams.set("run", run.id);
    history.replaceState(null, "", url);
  }

  /** Show the run in the page's address: its picture, options and answer. */
  async openRun() {
    const id = new URL(location.href).searchParams.get("run");
    if (!id) return;
    const [{ load }, { fillForm }] = await Promise.all([import("./runs.js"), import("./form.js")]);
    const run = await load(id).catch(() => null);
    if (!run?.file || this.items.length) return;
    fillForm(this.form, run.request);
    const item = { file: run.file, answer: run.answer, milliseconds: run.milliseconds, status: "done" };
    this.items = [item];
    await this.select(item);
  }

  showProblem(problem) {
    const { target } = this;
    if (problem.name !== "AbortError" && target?.status === "running") Object.assign(target, { status: "failed", problem, answer: null });
    if (target && target !== this.current && target.problem === problem) return;
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

  /** The request as multipart: the picture's bytes as they are. */
  buildBody(file = this.file) {
    const body = new FormData();
    body.append("model", selectedModel(this));
    for (const [name, value] of Object.entries(this.requestOptions)) {
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

  /** The options of a request. */
  get requestOptions() {
    return this.options;
  }

  /** Draw over the picture, but not left of the wipe's border. */
  drawWiped(context, draw) {
    const { width, height } = context.canvas;
    const border = width * this.part("wipe").valueAsNumber;
    context.save();
    context.beginPath();
    context.rect(border, 0, width - border, height);
    context.clip();
    draw();
    context.restore();
    if (border) context.fillRect(border - 1, 0, 2, height);
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
    if (on && this.items.length > 1) this.setText("progress-note", `${this.constructor.progressLabel} ${target.file.name}${left ? `, ${left} more` : ""}`);
  }
}
