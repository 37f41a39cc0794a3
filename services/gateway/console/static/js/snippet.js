/** Two small elements: a slider that shows its value, and a snippet with a copy button. */

import { CustomElement } from "./custom_element.js";
import { copyText } from "./save.js";

export class Slider extends HTMLElement {
  connectedCallback() {
    this.addEventListener("input", (event) => {
      const output = this.closest(".field").querySelector("output");
      if (output) output.textContent = event.target.value;
    });
  }
}

export class Code extends CustomElement {
  connectedCallback() {
    this.on("click", "copy", async () => {
      await copyText(this.part("text").textContent);
      this.setText("label", "Copied");
      setTimeout(() => this.setText("label", "Copy"), 1600);
    });
  }
}

customElements.define("fovea-slider", Slider);
customElements.define("fovea-code", Code);
