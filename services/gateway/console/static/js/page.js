/**
 * Fetches pages of the console as documents: to send the tab's key, which the browser does not, and to redraw a part.
 */

import { call } from "./gateway.js";

/** A page of this console, fetched with the key. */
export async function fetchPage(url) {
  const response = await call(url, { headers: { Accept: "text/html" } });
  return new DOMParser().parseFromString(await response.text(), "text/html");
}

/** Replace title and content by those of a fetched page, once its modules are there. */
export async function replacePage(fetched) {
  await Promise.all([...fetched.querySelectorAll("script[type=module]")].map((script) => import(script.src)));
  document.title = fetched.title;
  document.querySelector("main").replaceWith(document.adoptNode(fetched.querySelector("main")));
}

/** The choice of a model: redraws its options and keeps everything else, such as the picture. */
class ModelChoice extends HTMLElement {
  connectedCallback() {
    this.addEventListener("change", () => this.redraw());
  }

  async redraw() {
    const url = new URL(location.href);
    url.searchParams.set("model", this.querySelector("select").value);
    for (const name of ["session", "run"]) url.searchParams.delete(name); // they belong to the other model
    const form = this.closest("form");
    const newForm = (await fetchPage(url)).querySelector('form[data-part="options"]');
    history.replaceState(null, "", url);
    form.replaceChildren(...document.adoptNode(newForm).childNodes);
    form.querySelector("fovea-model select").focus();
    form.dispatchEvent(new CustomEvent("fovea-model", { bubbles: true }));
  }
}

customElements.define("fovea-model", ModelChoice);
