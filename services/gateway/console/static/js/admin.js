/** Page of operators: services, keys, usage and the audit log, each fetched when its tab is opened. */

import { createButton, createNode, CustomElement } from "./custom_element.js";
import { call } from "./gateway.js";
import "./snippet.js";
import "./tabs.js";

const fetchJson = async (path, options) => (await call(path, options)).json();
const formatTime = (text) => (text ? new Date(text).toLocaleString([], { dateStyle: "medium", timeStyle: "short" }) : "–");
const formatNumber = (value) => Math.round(value).toLocaleString("en");

/** A section that loads its table when it is first seen. */
class AdminTable extends CustomElement {
  connectedCallback() {
    const seen = new IntersectionObserver(([{ isIntersecting }]) => {
      if (isIntersecting) this.attempt(() => this.load());
    });
    seen.observe(this);
  }

  /** Fill the table: rows of texts or nodes. */
  fill(rows) {
    this.part("rows").replaceChildren(...rows.map((cells) => createNode("tr", "", ...cells.map((cell, at) => createNode(at ? "td" : "th", "figures", cell ?? "–")))));
    this.show(rows.length === 0, "nothing");
  }
}

class AdminServices extends AdminTable {
  async load() {
    const { services, redis } = await fetch("/readyz").then((answer) => answer.json());
    this.fill(Object.entries(services).map(([name, { ready, alive, requests }]) => [name, String(ready), String(alive), String(requests)]));
    this.setText("about", `Redis: ${redis}.`);
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.checkVisibility() && this.attempt(() => this.load()), 4000);
  }
}

class AdminKeys extends AdminTable {
  connectedCallback() {
    super.connectedCallback();
    this.on("submit", "form", (event) => {
      event.preventDefault();
      this.attempt(() => this.make());
    });
  }

  async load() {
    const { keys } = await fetchJson("/v1/admin/keys");
    this.fill(keys.map((key) => [
      key.id, key.tenant, key.scopes.join(", "), formatTime(key.created), key.is_expired ? "expired" : formatTime(key.expires), formatTime(key.last_used), this.createActions(key),
    ]));
  }

  createActions({ id }) {
    const rotate = createButton("Rotate", () => this.attempt(async () => this.showMade(await fetchJson(`/v1/admin/keys/${id}/rotate`, { method: "POST", json: {} }))), "quiet small");
    const revoke = createButton("Revoke", () => this.revoke(id, revoke), "quiet small");
    return createNode("span", "", rotate, revoke);
  }

  /** Revoking can't be undone: the first click asks, the second does it. */
  async revoke(id, button) {
    if (!button.dataset.confirming) {
      button.dataset.confirming = "yes";
      button.textContent = "Revoke for good";
      return;
    }
    await this.attempt(async () => {
      await call(`/v1/admin/keys/${id}`, { method: "DELETE" });
      await this.load();
    });
  }

  async make() {
    const { tenant, scopes } = this.part("form").elements;
    const json = { tenant: tenant.value.trim(), scopes: [...scopes].filter((box) => box.checked).map((box) => box.value) };
    await this.showMade(await fetchJson("/v1/admin/keys", { method: "POST", json }));
  }

  /** Show the text of a new key, which nobody can read again. */
  async showMade({ key, id }) {
    this.setText("made-id", id);
    this.part("made").querySelector('[data-part="text"]').textContent = key;
    this.show(true, "made");
    await this.load();
  }
}

class AdminUsage extends AdminTable {
  async load() {
    const { usage } = await fetchJson("/v1/usage?tenant=*");
    this.fill(usage.map((one) => [
      one.day, one.tenant, one.model || "–", formatNumber(one.requests), formatNumber(one.tokens_in), formatNumber(one.tokens_out), formatNumber(one.pictures), one.cpu_seconds.toFixed(1),
    ]));
  }
}

class AdminAudit extends AdminTable {
  async load() {
    const { entries } = await fetchJson("/v1/admin/audit");
    this.fill(entries.map(({ time, actor, act, target, ...rest }) => [formatTime(time), actor, act, target, JSON.stringify(rest)]));
  }
}

customElements.define("fovea-admin-services", AdminServices);
customElements.define("fovea-admin-keys", AdminKeys);
customElements.define("fovea-admin-usage", AdminUsage);
customElements.define("fovea-admin-audit", AdminAudit);
