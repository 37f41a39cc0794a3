/**
 * Fetches pages of the console as documents: to send the tab's key, which the browser does not, and to redraw a part.
 */

import { call, forgetKey, storedKey } from "./gateway.js";
import { CustomElement } from "./custom_element.js";

/** A page of this console, fetched with the key. */
export async function fetchPage(url) {
  const response = await call(url, { headers: { Accept: "text/html" } });
  return new DOMParser().parseFromString(await response.text(), "text/html");
}

/** Replace title and content by those of a fetched page. */
export function replacePage(fetched) {
  document.title = fetched.title;
  document.querySelector("main").replaceWith(document.adoptNode(fetched.querySelector("main")));
  document.dispatchEvent(new Event("fovea-page"));
}

/** The choice of a model: redraws its options and keeps everything else, such as the picture. */
export class ModelChoice extends HTMLElement {
  connectedCallback() {
    this.addEventListener("change", () => this.redraw());
  }

  async redraw() {
    const url = new URL(location.href);
    url.searchParams.set("model", this.querySelector("select").value);
    url.searchParams.delete("session"); // it belongs to the other model
    const form = this.closest("form");
    const newForm = (await fetchPage(url)).querySelector('form[data-part="options"]');
    history.replaceState(null, "", url);
    form.replaceChildren(...document.adoptNode(newForm).childNodes);
    form.querySelector("fovea-model select").focus();
    form.dispatchEvent(new CustomEvent("fovea-model", { bubbles: true }));
  }
}

/** The button that forgets the key; shown only while there is one. */
export class ForgetKeyButton extends CustomElement {
  connectedCallback() {
    this.hidden = !storedKey();
    this.on("click", "forget", () => {
      forgetKey();
      location.reload();
    });
  }
}

customElements.define("fovea-key", ForgetKeyButton);
customElements.define("fovea-model", ModelChoice);
