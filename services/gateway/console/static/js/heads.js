/**
 * Heads of a token of an answer: a layer-by-head map of its attention, and the tokens that a head looks at most.
 * The answer is asked for again up to that token, with the same seed and interventions and a capture of its attention.
 */

import { call } from "./gateway.js";
import { CustomElement, partOf } from "./custom_element.js";
import { readNpz } from "./npz.js";
import { moveFocus, splitTokens } from "./answer_tokens.js";

const LOOKS = 8;
const SHADES = 5;

export class Heads extends CustomElement {
  connectedCallback() {
    this.traces = new WeakMap();
    const turns = partOf(this.chat, "turns"); // the chat itself may not be defined yet
    turns.addEventListener("click", ({ target }) => target.dataset.token && this.open(target));
    turns.addEventListener("keydown", (event) => this.onKey(event, event.target.closest("[data-token]"), "[data-token]"));
    this.on("keydown", "head", (event, button) => this.onKey(event, button, '[data-part="head"]'));
    this.on("click", "head", (_, button) => this.selectHead(button));
    this.on("click", "mean-heads", () => this.selectHead(null));
    this.on("click", "close-heads", () => this.close());
  }

  get chat() {
    return this.closest("fovea-chat");
  }

  /** Make the tokens of a finished answer clickable, where the answer came with them. */
  trace(answer) {
    const pieces = splitTokens(answer.scores, answer.text);
    if (!pieces) return;
    this.traces.set(answer.output, answer);
    answer.output.replaceChildren(...pieces.map(({ text, index }, at) => createToken(text, index, at === 0)));
  }

  /** Enter and the space bar open a token; arrows go to its neighbours. */
  onKey(event, item, kind) {
    if (!item) return;
    if (item.dataset.token && (event.key === "Enter" || event.key === " ")) item.click();
    else if (!moveFocus(item, kind, event.key, this.columns)) return;
    event.preventDefault();
  }

  close() {
    this.reading?.abort();
    this.hidden = true;
    const token = this.chat.querySelector('[data-token][aria-pressed="true"]');
    token?.setAttribute("aria-pressed", "false");
    token?.focus();
  }

  /** Read and show the heads of a token. */
  async open(token) {
    this.reading?.abort();
    const { signal } = (this.reading = new AbortController());
    this.chat.querySelectorAll('[data-token][aria-pressed="true"]').forEach((one) => one.setAttribute("aria-pressed", "false"));
    token.setAttribute("aria-pressed", "true");
    this.hidden = false;
    this.show(false, "heads-body");
    this.showError(null);
    this.setText("token", token.textContent.trim() || "␣");
    this.setText("heads-note", "Reading the heads …");
    try {
      const answer = this.traces.get(token.closest('[data-part="text"]'));
      this.keys = await readKeys(answer, signal);
      this.rows = await this.readRows(answer, Number(token.dataset.token), signal);
      this.showMap();
      this.scrollIntoView({ block: "nearest" });
    } catch (problem) {
      if (problem.name === "AbortError") return;
      this.setText("heads-note", null);
      this.showError(problem);
    }
  }

  /** Attention rows [layer][head] of a token of an answer. */
  async readRows(answer, index, signal) {
    const at = answer.usage.prompt_tokens + index;
    const json = { ...answer.request, max_tokens: index + 2, capture: [{ type: "attention", positions: [at] }] };
    const completion = await (await call(this.chat.dataset.path, { method: "POST", json, signal })).json();
    const captured = completion.choices[0].captured?.[0];
    if (captured?.tokens[0] !== answer.scores[index].token) {
      const hint = "Ask the question again, or set the temperature to 0.";
      throw Object.assign(new Error("The model answered differently this time, so the token is not there."), { title: "Not the same answer", hint });
    }
    this.layers = captured.layers;
    return captured.values?.[0] ?? readFile(captured.url);
  }

  /** Show the map, and what all heads look at together. */
  showMap() {
    const [layers, heads] = [this.rows.length, this.rows[0].length];
    this.columns = layers;
    const corner = createHeading("", "col");
    this.part("map-layers").replaceChildren(corner, ...this.layers.map((layer) => createHeading(layer, "col")));
    this.part("map").replaceChildren(...Array.from({ length: heads }, (_, head) => this.createRow(head, layers)));
    this.querySelector('[data-part="head"]').tabIndex = 0;
    this.show(true, "heads-body");
    const keys = this.rows[0][0].length;
    this.setText("heads-note", `${layers} layers across, ${heads} heads down, ${keys} tokens to look at. The darker, the more of a head’s attention is on one token; the first token, where heads rest, is left aside.`);
    this.selectHead(null);
  }

  createRow(head, layers) {
    const row = document.createElement("tr");
    row.append(createHeading(head, "row"));
    for (let layer = 0; layer < layers; layer += 1) {
      const cell = this.cloneTemplate("cell");
      const button = cell.querySelector("button");
      const most = findStrongest(this.rows[layer][head]);
      Object.assign(button.dataset, { layer, head, shade: Math.round(SHADES * most.weight) });
      button.ariaLabel = button.title = `Layer ${this.layers[layer]}, head ${head}: ${percent(most.weight)} on “${this.textOf(most.key)}”`;
      row.append(cell);
    }
    return row;
  }

  /** Show what a head looks at; null stands for the mean of all heads. */
  selectHead(button) {
    for (const one of this.querySelectorAll('[data-part="head"]')) one.setAttribute("aria-pressed", String(one === button));
    const row = button ? this.rows[button.dataset.layer][button.dataset.head] : averageRows(this.rows.flat());
    this.setText("head-name", button ? `Layer ${this.layers[button.dataset.layer]}, head ${button.dataset.head}` : "Mean of all heads");
    this.show(Boolean(button), "mean-heads");
    const keys = [...row.keys()].sort((a, b) => row[b] - row[a]).slice(0, LOOKS);
    this.part("looks").replaceChildren(...keys.filter((key) => row[key] > 0).map((key) => this.createLook(key, row[key])));
  }

  createLook(key, weight) {
    const item = this.cloneTemplate("look");
    item.querySelector('[data-part="look-token"]').textContent = this.textOf(key);
    item.querySelector('[data-part="look-weight"]').textContent = percent(weight);
    item.querySelector("progress").value = weight;
    item.title = `Token ${key}`;
    return item;
  }

  /** Text of a key; blanks as signs. */
  textOf(key) {
    return (this.keys[key] ?? `token ${key}`).replaceAll("\n", "↵").replaceAll(" ", "␣");
  }
}

/** Texts of all tokens: of the prompt under the model's template, then of the answer. */
async function readKeys({ request, scores }, signal) {
  const json = { model: request.model, messages: request.messages, return_token_strs: true };
  const prompt = await (await call("/tokenize", { method: "POST", json, signal })).json();
  return [...prompt.token_strs, ...scores.map(({ token }) => token)];
}

/** Rows of a capture that came as a file, which is then no longer needed. */
async function readFile(url) {
  const { shape, values } = (await readNpz(await (await call(url)).arrayBuffer()))["0.values"];
  call(url, { method: "DELETE" }).catch(() => {});
  const [, layers, heads, keys] = shape;
  return Array.from({ length: layers }, (_, layer) => Array.from({ length: heads }, (_, head) => values.subarray((layer * heads + head) * keys, (layer * heads + head + 1) * keys)));
}

/** The key with the most weight, the first token aside. */
function findStrongest(row) {
  let key = Math.min(1, row.length - 1);
  for (let other = 2; other < row.length; other += 1) if (row[other] > row[key]) key = other;
  return { key, weight: row[key] };
}

const averageRows = (rows) => Array.from(rows[0], (_, key) => rows.reduce((sum, row) => sum + row[key], 0) / rows.length);

const percent = (weight) => `${(100 * weight).toFixed(weight < 0.1 ? 1 : 0)} %`;

function createHeading(text, scope) {
  const heading = document.createElement("th");
  return Object.assign(heading, { textContent: text, scope });
}

function createToken(text, index, isFirst) {
  const token = document.createElement("span");
  token.className = "answer-token";
  token.dataset.token = index;
  return Object.assign(token, { textContent: text, role: "button", tabIndex: isFirst ? 0 : -1, ariaPressed: "false" });
}

customElements.define("fovea-heads", Heads);
