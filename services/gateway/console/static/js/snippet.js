/** Two elements too small for a file of their own: a slider that shows its value, and a snippet that can be copied. */

import { Part } from "./element.js";

export class Slider extends HTMLElement {
  connectedCallback() {
    this.addEventListener("input", (event) => {
      const output = this.closest(".field").querySelector("output");
      if (output) output.textContent = event.target.value;
    });
  }
}

export class Code extends Part {
  connectedCallback() {
    this.on("click", "copy", async () => {
      await navigator.clipboard.writeText(this.part("text").textContent);
      this.say("label", "Copied");
      setTimeout(() => this.say("label", "Copy"), 1600);
    });
  }
}
