/** Which attention method a chat asks for, with its knobs. Knows forms; knows no method. */

import { values } from "./form.js";
import { Part } from "./element.js";

export class Attention extends Part {
  connectedCallback() {
    this.on("change", "method", () => this.choose());
    this.choose();
  }

  get method() {
    return this.part("method").value;
  }

  /** Show the knobs of the method that is chosen. */
  choose() {
    for (const knobs of this.querySelectorAll("[data-method]")) knobs.hidden = knobs.dataset.method !== this.method;
  }

  /** What a request says about it; nothing where the default holds. */
  get request() {
    const knobs = this.querySelector(`[data-method="${this.method}"]`);
    return knobs ? { longctx: { method: this.method, ...values(knobs) } } : {};
  }
}
