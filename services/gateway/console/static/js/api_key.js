/** Form for an API key: stores it and opens the requested page. */

import { forgetKey, storeKey, storedKey } from "./gateway.js";
import { CustomElement } from "./custom_element.js";
import { fetchPage, replacePage } from "./page.js";

export class ApiKeyForm extends CustomElement {
  connectedCallback() {
    this.on("submit", "form", (event) => {
      event.preventDefault();
      storeKey(this.part("key").value.replace(/[^!-~]/g, ""), this.part("for-good").checked);
      this.openPage("The gateway does not accept this key.");
    });
    this.on("click", "sign-in", () => this.signIn("start"));
    if ("returns" in this.dataset) this.signIn("finish");
    else if (storedKey()) this.openPage("The stored key is no longer accepted.");
  }

  async signIn(step) {
    try {
      await (await import("./sign_in.js"))[step]();
    } catch (problem) {
      this.setText("message", problem.message);
      this.classList.remove("busy");
    }
  }

  async openPage(refusal) {
    this.classList.add("busy");
    try {
      await replacePage(await fetchPage(location.href));
      document.querySelector("fovea-key").hidden = false;
    } catch (problem) {
      if (problem.status === 401) forgetKey();
      this.setText("message", problem.status === 401 ? refusal : problem.message);
      this.classList.remove("busy");
      this.part("key")?.focus();
    }
  }
}

customElements.define("fovea-api-key", ApiKeyForm);
