/** Keeps the readiness of models true while a page is open, and redraws the front page when models come or go. */

import { call } from "./gateway.js";
import { page, take } from "./page.js";

const EVERY_MS = 4000;

export class Live extends HTMLElement {
  connectedCallback() {
    this.timer = setInterval(() => document.visibilityState === "visible" && this.look().catch(() => {}), EVERY_MS);
  }

  disconnectedCallback() {
    clearInterval(this.timer);
  }

  async look() {
    const models = (await (await call("/v1/models")).json()).data;
    const known = [...this.querySelectorAll("[data-model]")].map((place) => [place.dataset.model, place.querySelector("fovea-ready").ready]);
    const same = JSON.stringify(models.map((m) => [m.id, m.ready]).sort()) === JSON.stringify(known.sort());
    if (!same && this.isConnected) take(await page(location.href));
  }
}

/** One model's readiness; the words are drawn by the server. */
export class Ready extends HTMLElement {
  get ready() {
    return this.hasAttribute("data-ready");
  }
}
