/** Classification page: pictures and their classes, whole or patch by patch, with the most likely candidates of each. */

import { fitSize } from "./canvas.js";
import { createNode } from "./custom_element.js";
import { Findings } from "./findings.js";
import { PicturePage } from "./picture.js";
import { saveJson } from "./save.js";

/** Longest side, in pixels, at which the page draws. */
const MAX_DRAWN_SIDE = 1280;

class Classify extends PicturePage {
  static progressLabel = "Classifying";
  static hiddenNote = "this browser shows only its classes";

  connectedCallback() {
    super.connectedCallback();
    this.highlight = null;
    this.findings = new Findings(this);
    this.on("click", "save-json", () => saveJson(this.answer, `${this.stem}.json`));
    this.addEventListener("fovea-model", () => this.run());
  }

  clearAnswer() {
    this.answer = null;
  }

  showPicture() {
    this.redraw();
  }

  async receive(answer, milliseconds) {
    this.answer = answer;
    const [name, count] = Object.entries(answer.counts)[0] ?? ["–", 0];
    const [first] = answer.results;
    const isWhole = answer.results.length === 1;
    this.setText("class", name);
    this.setText("certainty", isWhole ? `${(100 * first.probability).toFixed(1)} %` : `${count} of ${answer.results.length} patches`);
    this.setText("size", `${answer.width} × ${answer.height}`);
    this.setText("time", `${Math.round(milliseconds)} ms`);
    this.setText("verdict", answer.warnings?.[0]);
    this.show(Boolean(answer.warnings?.[0]), "verdict");
    this.part("figures").classList.toggle("doubtful", Boolean(answer.warnings?.[0]));
    this.show(true, "result");
    this.findings.show(this.describeFindings(this.current), this.current);
    this.redraw();
  }

  /** One finding a patch; its row has the runners-up. */
  describeFindings({ answer }) {
    const isWhole = answer.results.length === 1;
    return answer.results.map(({ label, probability, box, top }, at) => ({
      words: `${label} ${probability.toFixed(2)}${isWhole ? "" : `, row ${Math.floor(at / answer.columns) + 1}, column ${(at % answer.columns) + 1}`}`, box, key: String(at), top,
      row: { label, score: probability, x1: box[0], y1: box[1], x2: box[2], y2: box[3], others: top.slice(1).map((one) => `${one.label} ${one.probability.toFixed(3)}`).join("; ") },
    }));
  }

  drawCompared(context, { answer }) {
    context.drawImage(this.picture, 0, 0, context.canvas.width, context.canvas.height);
    this.drawPatches(context, answer);
  }

  redraw() {
    const canvas = this.part("canvas");
    const source = this.picture ?? this.answer;
    if (!source) return;
    Object.assign(canvas, fitSize(source.width, source.height, MAX_DRAWN_SIDE));
    const context = canvas.getContext("2d");
    if (this.picture) context.drawImage(this.picture, 0, 0, canvas.width, canvas.height);
    if (!this.answer) return;
    this.drawPatches(context, this.answer);
    this.comparison?.redraw();
    const chosen = this.highlight ?? this.describeFindings(this.current)[0];
    this.setText("candidates-title", `Most likely classes${this.answer.results.length > 1 ? ` of the patch: ${chosen.words}` : ""}`);
    this.part("candidates").replaceChildren(...chosen.top.map(createCandidate));
    canvas.setAttribute("aria-label", `${this.file.name}: ${Object.entries(this.answer.counts).map(([name, count]) => (this.answer.results.length > 1 ? `${count} ${name}` : name)).join(", ")}`);
  }

  /** The patches of a picture with their classes; one that was classified whole has none. */
  drawPatches(context, answer) {
    if (answer.results.length < 2) return;
    const scale = context.canvas.width / answer.width;
    const size = Math.max(10, context.canvas.width / 70);
    context.font = `600 ${size}px sans-serif`;
    answer.results.forEach(({ label, box }, at) => {
      const [x1, y1, x2, y2] = box.map((corner) => corner * scale);
      context.strokeStyle = "rgb(255 255 255 / 70%)";
      context.lineWidth = this.highlight?.key === String(at) ? 4 : 1;
      context.strokeRect(x1, y1, x2 - x1, y2 - y1);
      context.fillStyle = "rgb(0 0 0 / 55%)";
      context.fillRect(x1, y1, Math.min(x2 - x1, context.measureText(label).width + size), size * 1.4);
      context.fillStyle = "#fff";
      context.fillText(label, x1 + size / 2, y1 + size, x2 - x1 - size);
    });
  }
}

function createCandidate({ label, probability }) {
  const bar = createNode("progress", "");
  Object.assign(bar, { max: 1, value: probability, ariaHidden: "true" });
  return createNode("div", "histogram-bar candidate", createNode("span", "", label), bar, createNode("span", "figures", `${(100 * probability).toFixed(1)} %`));
}

customElements.define("fovea-classify", Classify);
