/** Readiness of models: polled while the page is visible, and written in place, so that focus and scrolling stay. */

import { call } from "./gateway.js";

const POLL_INTERVAL_MS = 4000;

/** Call `use` with the list of models every few seconds while an element is in the page. */
export function watchModels(element, use) {
  const timer = setInterval(async () => {
    if (!element.isConnected) clearInterval(timer);
    else if (document.visibilityState === "visible") await call("/v1/models").then((answer) => answer.json()).then(({ data }) => use(data)).catch(() => {});
  }, POLL_INTERVAL_MS);
}

/** The sentence on the front page; the page is opened again when its first model appears. */
class Readiness extends HTMLElement {
  connectedCallback() {
    const had = !this.textContent.startsWith("0 of 0");
    watchModels(this, (models) => {
      if (!had && models.length) location.reload();
      const services = new Set(models.map((model) => model.service)).size;
      const text = `${models.filter((model) => model.ready).length} of ${models.length} model${models.length === 1 ? "" : "s"} ready in ${services} service${services === 1 ? "" : "s"}.`;
      if (this.textContent !== text) this.textContent = text;
    });
  }
}

/** One model's readiness. */
class Ready extends HTMLElement {
  set ready(isReady) {
    this.toggleAttribute("data-ready", isReady);
    this.className = `state ${isReady ? "state-ready" : "state-waiting"}`;
    this.textContent = isReady ? "Ready" : "Not ready";
  }
}

customElements.define("fovea-readiness", Readiness);
customElements.define("fovea-ready", Ready);
