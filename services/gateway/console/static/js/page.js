/**
 * Fetches pages of the console as documents: to send the tab's key, which the browser does not, and to redraw a part.
 */

import { call } from "./gateway.js";

/** A page of this console, fetched with the key. */
export async function fetchPage(url) {
  const response = await call(url, { headers: { Accept: "text/html" } });
  return new DOMParser().parseFromString(await response.text(), "text/html");
}

/** Replace title, navigation and content by those of a fetched page, once its modules are there; style sheets are added. */
export async function replacePage(fetched) {
  const known = [...document.styleSheets].map(({ href }) => href);
  document.head.append(...[...fetched.querySelectorAll("link[rel=stylesheet]")].filter(({ href }) => !known.includes(href)));
  await Promise.all([...fetched.querySelectorAll("script[type=module]")].map((script) => import(script.src)));
  document.title = fetched.title;
  for (const part of ["#menu", "main"]) document.querySelector(part).replaceWith(document.adoptNode(fetched.querySelector(part)));
}

/** The choice of a model: redraws its options and keeps everything else, such as the picture. */
class ModelChoice extends HTMLElement {
  connectedCallback() {
    this.shown = this.querySelector("select").value;
    this.addEventListener("change", () => this.redraw());
  }

  /** Only the last choice counts; until its options are there, nothing can be sent, and without them it is taken back. */
  async redraw() {
    const select = this.querySelector("select");
    const [form, model] = [this.closest("form"), select.value];
    const go = form.querySelector('[data-part="go"]');
    const isOld = () => !this.isConnected || select.value !== model;
    this.couldGo ??= go ? !go.disabled : false;
    if (go) go.disabled = true;
    const url = new URL(location.href);
    url.searchParams.set("model", model);
    for (const name of ["session", "run"]) url.searchParams.delete(name); // they belong to the other model
    const page = await fetchPage(url).catch((problem) => {
      if (isOld()) return;
      select.value = this.shown;
      if (go) go.disabled = !this.couldGo;
      if (problem.status === 503) problem.message = `${model} is still being loaded. Try again in a few seconds.`;
      this.closest("[data-path]").showError(problem);
    });
    const newForm = page?.querySelector('form[data-part="options"]');
    if (!newForm || isOld()) return;
    history.replaceState(null, "", url);
    Object.assign(this.closest("[data-path]").dataset, newForm.closest("[data-path]").dataset); // such as limits
    for (const old of document.querySelectorAll("[data-of-model]")) {
      const fresh = page.querySelector(`[data-of-model="${old.dataset.ofModel}"]`);
      if (fresh) old.replaceChildren(...document.adoptNode(fresh).childNodes);
    }
    form.replaceChildren(...document.adoptNode(newForm).childNodes);
    if (this.couldGo) form.querySelector('[data-part="go"]').disabled = false; // its picture is still there
    form.querySelector("fovea-model select").focus();
    form.dispatchEvent(new CustomEvent("fovea-model", { bubbles: true }));
  }
}

customElements.define("fovea-model", ModelChoice);
