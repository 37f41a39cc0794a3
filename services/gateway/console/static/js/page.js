/**
 * Fetches pages of ours as documents: for a tab whose key the browser does not send by itself, and to redraw a part.
 */

import { call, forgetKey, storedKey } from "./gateway.js";
import { Part } from "./element.js";

/** A page of this console, fetched with the key. */
export async function page(url) {
  const response = await call(url, { headers: { Accept: "text/html" } });
  return new DOMParser().parseFromString(await response.text(), "text/html");
}

/** Take over title and content of a fetched page. */
export function take(fetched) {
  document.title = fetched.title;
  document.querySelector("main").replaceWith(document.adoptNode(fetched.querySelector("main")));
}

/** The choice of a model: redraws the options for it and keeps everything else, such as the picture. */
export class ModelChoice extends HTMLElement {
  connectedCallback() {
    this.addEventListener("change", () => this.redraw());
  }

  async redraw() {
    const url = new URL(location.href);
    url.searchParams.set("model", this.querySelector("select").value);
    url.searchParams.delete("session"); // it is the other model's
    const form = this.closest("form");
    const drawn = (await page(url)).querySelector('form[data-part="options"]');
    history.replaceState(null, "", url);
    form.replaceChildren(...document.adoptNode(drawn).childNodes);
    form.querySelector("fovea-model select").focus();
    form.dispatchEvent(new CustomEvent("fovea-model", { bubbles: true }));
  }
}

/** The button that forgets the key; shown only while there is one. */
export class KeyHolder extends Part {
  connectedCallback() {
    this.hidden = !storedKey();
    this.on("click", "forget", () => {
      forgetKey();
      location.reload();
    });
  }
}
