/** Asks for an API key and opens the page that was wanted. */

import { forgetKey, keepKey, storedKey } from "./gateway.js";
import { Part } from "./element.js";
import { page, take } from "./page.js";

export class Lock extends Part {
  connectedCallback() {
    this.on("submit", "form", (event) => {
      event.preventDefault();
      keepKey(this.part("key").value.trim());
      this.open("The gateway does not accept this key.");
    });
    if (storedKey()) this.open("The key of this tab is no longer accepted.");
  }

  async open(refusal) {
    this.classList.add("busy");
    try {
      take(await page(location.href));
      document.querySelector("fovea-key").hidden = false;
    } catch (problem) {
      if (problem.status === 401) forgetKey();
      this.say("said", problem.status === 401 ? refusal : problem.message);
      this.classList.remove("busy");
      this.part("key")?.focus();
    }
  }
}
