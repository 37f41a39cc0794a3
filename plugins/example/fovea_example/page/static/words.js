/** Page of the words: sends the text and shows how often each word occurs. */

import { CustomElement } from "../../js/custom_element.js";
import { call } from "../../js/gateway.js";

class Words extends CustomElement {
  connectedCallback() {
    this.on("submit", "form", (event, form) => {
      event.preventDefault();
      this.count(form.elements.text.value).catch((error) => this.showError(error));
    });
  }

  async count(text) {
    this.showError(null);
    const { words } = await (await call("/v1/count-words", { method: "POST", json: { text } })).json();
    this.setText("words", Object.entries(words).map(([word, n]) => `${word} ${n}`).join(", "));
  }
}

customElements.define("fovea-words", Words);
