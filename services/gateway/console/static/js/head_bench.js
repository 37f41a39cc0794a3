/**
 * What a map of heads leads on to: the attention of a head over its text, and chosen heads, which are ablated or kept.
 * A cell of a map links to the experiment that reads the head; here its answer is shown below the map.
 */

import { createButton, createNode } from "./custom_element.js";
import { call } from "./gateway.js";

const SHADES = 5;

export class HeadBench {
  constructor(probe) {
    this.probe = probe;
    this.chosen = new Map();
    probe.part("answer").addEventListener("click", (event) => this.onClick(event));
    probe.on("click", "close-head", () => probe.show(false, "head"));
    probe.on("click", "head-token", (_, token) => this.selectQuery(Number(token.dataset.at)));
    probe.on("click", "choose-head", () => this.toggle());
    probe.on("click", "clear-heads", () => this.clear());
    probe.on("click", "ablate", () => this.ablate());
    probe.on("click", "keep-heads", () => probe.attempt(async () => probe.runNeedleGrid(await this.buildPlan())));
  }

  /** A click on a head; with a modifier key the link opens as usual. */
  onClick(event) {
    const link = event.target.closest("a");
    const head = link && readHead(link);
    if (!head || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    this.link = link;
    this.probe.attempt(() => this.open(head));
  }

  async open(head) {
    const { probe } = this;
    this.head = head;
    probe.show(true, "head");
    probe.setText("head-title", `Layer ${head.layer}, head ${head.head}`);
    probe.setText("head-note", "Reading its attention …");
    probe.part("head-text").replaceChildren();
    probe.part("head-page").href = hrefOf(this.link);
    this.markChoice();
    const json = { model: "attention", ...head.spec };
    const report = await (await call(probe.dataset.path, { method: "POST", json })).json();
    if (this.head !== head) return;
    this.rows = report.grids[0].values;
    this.tokens = report.strips[0].tokens.map(({ text }) => text);
    probe.setText("head-note", "Choose a token: the darker another one, the more of its attention is there.");
    probe.part("head-text").replaceChildren(...this.tokens.map(createToken));
    this.selectQuery(this.rows.length - 1);
  }

  /** Shade the text by the attention of one of its tokens. */
  selectQuery(at) {
    const row = this.rows[at];
    const most = Math.max(...row) || 1;
    for (const token of this.probe.part("head-text").children) {
      const weight = row[token.dataset.at] ?? 0;
      token.dataset.shade = Math.round((SHADES * weight) / most);
      token.title = `${(100 * weight).toFixed(1)} %`;
      token.setAttribute("aria-pressed", String(Number(token.dataset.at) === at));
    }
    const keys = [...row.keys()].sort((a, b) => row[b] - row[a]).slice(0, 3).filter((key) => row[key] > 0);
    this.probe.setText("head-reads", `From “${show(this.tokens[at])}”: ${keys.map((key) => `${(100 * row[key]).toFixed(0)} % on “${show(this.tokens[key])}” (${key})`).join(", ")}`);
  }

  toggle() {
    const name = nameOf(this.head);
    if (this.chosen.has(name)) this.remove(name);
    else {
      this.chosen.set(name, { ...this.head, link: this.link });
      this.link.dataset.chosen = "yes";
    }
    this.markChoice();
  }

  remove(name) {
    delete this.chosen.get(name)?.link.dataset.chosen;
    this.chosen.delete(name);
  }

  clear() {
    for (const name of [...this.chosen.keys()]) this.remove(name);
    this.markChoice();
  }

  markChoice() {
    const isChosen = this.head && this.chosen.has(nameOf(this.head));
    this.probe.part("choose-head").setAttribute("aria-pressed", String(Boolean(isChosen)));
    this.probe.setText("choose-head", isChosen ? "Chosen" : "Choose this head");
    this.probe.show(this.chosen.size > 0, "chosen");
    this.probe.show("grid" in this.probe.dataset, "keep-heads");
    this.probe.part("chosen-list").replaceChildren(...[...this.chosen.keys()].map((name) => {
      const chip = createButton(`${name} ×`, () => {
        this.remove(name);
        this.markChoice();
      }, "chip small");
      chip.setAttribute("aria-label", `Remove head ${name}`);
      return chip;
    }));
  }

  get pairs() {
    return [...this.chosen.values()].map(({ layer, head }) => [layer, head]);
  }

  /** Open the experiment that hides the chosen heads on the same text; it runs at once. */
  ablate() {
    const [{ spec: { lm, text } }] = this.chosen.values();
    const spec = { ...(lm && { lm }), text, heads: this.pairs };
    location.assign(`/console/probe?${new URLSearchParams({ model: "ablation", spec: JSON.stringify(spec) })}`);
  }

  /** A head plan in which the key/value heads of the chosen heads keep everything, and no other does. */
  async buildPlan() {
    const [{ spec: { lm } }] = this.chosen.values();
    const models = await (await call(`${this.probe.dataset.path}/models`)).json();
    const { name, layers, heads, kv_heads: groups } = models.find((one) => (lm ? one.name === lm : one.default)) ?? {};
    if (!layers) throw Object.assign(new Error("The size of the language model is not known yet."), { title: "Not ready", hint: "Run an experiment with it first." });
    const roles = Array.from({ length: layers }, () => Array(groups).fill(0));
    for (const [layer, head] of this.pairs) roles[layer][Math.floor((head * groups) / heads)] = 1;
    return { schema: "head-plan/1", model: { name }, rule: `chosen by hand: ${[...this.chosen.keys()].join(", ")}`, roles };
  }
}

const hrefOf = (link) => link.getAttribute("href") ?? link.getAttributeNS("http://www.w3.org/1999/xlink", "href");

/** The head that a link reads, with the spec of the experiment; null for any other link. */
function readHead(link) {
  const url = new URL(hrefOf(link), location.href);
  if (url.pathname !== "/console/probe" || url.searchParams.get("model") !== "attention") return null;
  const spec = JSON.parse(url.searchParams.get("spec"));
  return { layer: spec.layers[0], head: spec.heads[0], spec };
}

const nameOf = ({ layer, head }) => `${layer}-${head}`;
const show = (text) => text.replaceAll("\n", "↵").replaceAll(" ", "␣");

function createToken(text, at) {
  const token = createNode("button", "head-token", text.replaceAll("\n", "↵"));
  token.type = "button";
  token.dataset.part = "head-token";
  token.dataset.at = at;
  return token;
}
