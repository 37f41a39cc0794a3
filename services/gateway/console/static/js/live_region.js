/** Polls the readiness of the models, and redraws the front page when it changes. */

import { call } from "./gateway.js";
import { fetchPage, replacePage } from "./page.js";

const POLL_INTERVAL_MS = 4000;

export class LiveRegion extends HTMLElement {
  connectedCallback() {
    this.timer = setInterval(() => document.visibilityState === "visible" && this.poll().catch(() => {}), POLL_INTERVAL_MS);
  }

  disconnectedCallback() {
    clearInterval(this.timer);
  }

  async poll() {
    const models = (await (await call("/v1/models")).json()).data;
    const known = [...this.querySelectorAll("[data-model]")].map((node) => [node.dataset.model, node.querySelector("fovea-ready").ready]);
    const isSame = JSON.stringify(models.map((m) => [m.id, m.ready]).sort()) === JSON.stringify(known.sort());
    if (!isSame && this.isConnected) replacePage(await fetchPage(location.href));
  }
}

/** One model's readiness; the server renders its text. */
export class Ready extends HTMLElement {
  get ready() {
    return this.hasAttribute("data-ready");
  }
}
