/**
 * Drawer of the chat page that steers: the choice of a vector, its strength and layer, and the form that makes a vector
 * from two lists of prompts. What is done with the choice is `chat.js`.
 */

import { call } from "./gateway.js";
import { selectedModel } from "./form.js";
import { CustomElement } from "./custom_element.js";

export class Steering extends CustomElement {
  connectedCallback() {
    if (this.hasAttribute("data-locked")) return;
    this.vectors = JSON.parse(this.dataset.vectors);
    this.on("change", "vector", () => this.showVector());
    this.on("change", "layer", () => this.showStrength());
    this.on("input", "strength", () => this.showStrength());
    this.on("click", "make", (_, button) => this.make(button));
    this.part("maker").open = !this.vectors.length;
    this.showVectors("");
  }

  /** Whether answers are traced, and steered by the chosen vector. */
  get isOpen() {
    return !this.hasAttribute("data-locked") && this.part("drawer").open;
  }

  /** The chosen vector, or undefined. */
  get vector() {
    return this.vectors.find((one) => one.id === this.part("vector").value);
  }

  get strength() {
    return this.part("strength").valueAsNumber || 0;
  }

  /** The intervention of a request; null without a vector, or while the drawer is closed. */
  get intervention() {
    if (!this.isOpen || !this.vector) return null;
    return { vector: this.vector.id, strength: this.strength, site: `resid_post.${this.part("layer").value}` };
  }

  /** The choice in words. */
  get label() {
    return `${this.vector.id} × ${this.strength} in layer ${this.part("layer").value}`;
  }

  /** Fill the list of vectors and choose one of them. */
  showVectors(id) {
    const { options } = this.part("vector");
    options.length = 1;
    for (const one of this.vectors) options.add(new Option(one.id, one.id));
    this.part("vector").value = id;
    this.showVector();
  }

  /** Show what is known of the chosen vector, and its layers. */
  showVector() {
    const { vector } = this;
    this.show(Boolean(vector), "dose");
    if (!vector) {
      this.setText("vector-facts", this.vectors.length ? "" : "This model has no vectors yet. Make one below.");
      return;
    }
    const { options } = this.part("layer");
    options.length = 0;
    for (const { layer } of vector.layers) options.add(new Option(layer, layer));
    this.part("layer").value = vector.layer ?? vector.layers[0].layer;
    this.part("strength").value = vector.strength ?? 0.1;
    this.setText("vector-facts", `Made from ${vector.positive} and ${vector.negative} prompts; ${vector.tokens === "mean" ? "all tokens, averaged" : "the last token"}.`);
    this.showStrength();
  }

  /** Say how strong the strength is, beside the activations that it is added to. */
  showStrength() {
    const { separation } = this.vector.layers.find(({ layer }) => String(layer) === this.part("layer").value);
    const [plain, ...effects] = this.vector.side_effects;
    const at = effects.find((one) => one.strength >= Math.abs(this.strength)) ?? effects.at(-1);
    const rise = at ? ` At ${at.strength} the perplexity of plain text rises from ${plain.perplexity.toFixed(1)} to ${at.perplexity.toFixed(1)}.` : "";
    this.setText("strength-facts", `Adds ${Math.round(100 * Math.abs(this.strength))} % of an activation’s length.${rise} On its own prompts the vector tells ${Math.round(100 * separation)} % of the pairs apart; 50 % is chance.`);
  }

  /** Make a vector of the two lists, and choose it. */
  async make(button) {
    const controls = ["vector-name", "vector-positive", "vector-negative"].map((name) => this.part(name));
    if (!controls.every((control) => control.reportValidity())) return;
    const [name, positive, negative] = controls.map((control) => control.value);
    button.disabled = true;
    this.setText("maker-fault", null);
    this.setText("made", "Reading the prompts …");
    try {
      const json = { name, model: selectedModel(this.closest("form")), positive: lines(positive), negative: lines(negative), tokens: this.part("vector-tokens").value };
      const made = await (await call("/v1/steering-vectors", { method: "POST", json })).json();
      this.vectors.unshift(made);
      this.showVectors(made.id);
      this.part("maker").open = false;
      this.setText("made", `${made.id} is made.`);
      this.part("strength").focus();
    } catch (problem) {
      this.setText("made", null);
      this.setText("maker-fault", [problem.message, problem.hint].filter(Boolean).join(" "));
    } finally {
      button.disabled = false;
    }
  }
}

const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);

customElements.define("fovea-steering", Steering);
