/** The choice of an attention method for a chat, with the settings of the method. */

import { readValues } from "./form.js";
import { CustomElement } from "./custom_element.js";

export class Attention extends CustomElement {
  connectedCallback() {
    this.on("change", "method", () => this.showKnobs());
    this.showKnobs();
  }

  get method() {
    return this.part("method").value;
  }

  /** Show the knobs of the method that is chosen. */
  showKnobs() {
    for (const knobs of this.querySelectorAll("[data-method]")) knobs.hidden = knobs.dataset.method !== this.method;
  }

  /** The method's fields of a request; empty for the default method. */
  get requestFields() {
    const knobs = this.querySelector(`[data-method="${this.method}"]`);
    return knobs ? { longctx: { method: this.method, ...readValues(knobs) } } : {};
  }
}

customElements.define("fovea-attention", Attention);
