/** Page of operators: services and replicas, keys, usage and the audit log, each fetched when its tab is opened. */

import { describeUse } from "./account.js";
import { createButton, createNode, CustomElement } from "./custom_element.js";
import { call } from "./gateway.js";
import { writeCsv } from "./export_all.js";
import { drawColumns } from "./plot.js";
import { save } from "./save.js";
import "./snippet.js";
import "./tabs.js";

const REFRESH_MS = 4000;

const fetchJson = async (path, options) => (await call(path, options)).json();
const formatTime = (text) => (text ? new Date(text).toLocaleString([], { dateStyle: "medium", timeStyle: "short" }) : "–");
const formatDay = (text) => (text ? new Date(text).toLocaleDateString([], { dateStyle: "medium" }) : "–");
const formatNumber = (value) => (value < 10 && value % 1 ? value.toFixed(1) : Math.round(value).toLocaleString("en"));

/** A section that loads its table when it is first seen, with a search over its rows. */
export class AdminTable extends CustomElement {
  connectedCallback() {
    const seen = new IntersectionObserver((changes) => { // several at once where the browser is slow
      if (changes.at(-1).isIntersecting) this.attempt(() => this.load());
    });
    seen.observe(this);
    this.on("input", "find", () => this.find());
  }

  /** Fill the table: rows of texts or nodes. */
  fill(rows) {
    const heads = [...this.querySelectorAll("thead th")];
    const createCell = (cell, at) => createNode(at ? "td" : "th", heads[at].className, cell ?? "–");
    this.showError(null);
    this.part("rows").replaceChildren(...rows.map((cells) => createNode("tr", "", ...cells.map(createCell))));
    this.show(rows.length === 0, "nothing");
    this.find();
  }

  /** Show only rows with the words of the search. */
  find() {
    const words = this.part("find")?.value.toLowerCase() ?? "";
    for (const row of this.part("rows").children) row.hidden = !row.textContent.toLowerCase().includes(words);
  }

  /** Load again after a while, as long as the section is in view. */
  loadAgain() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.checkVisibility() && this.attempt(() => this.load()), REFRESH_MS);
  }
}

class AdminServices extends AdminTable {
  async load() {
    this.loadAgain();
    const { services, redis, reasons } = await fetch("/readyz").then((answer) => answer.json());
    this.fill(Object.entries(services).map(([name, { ready, alive, requests }]) => [name, String(ready), String(alive), String(requests), reasons[name] ?? ""]));
    this.setText("about", `Redis: ${redis}.`);
  }
}

class AdminReplicas extends AdminTable {
  async load() {
    this.loadAgain();
    const { replicas } = await fetchJson("/v1/admin/replicas");
    this.fill(replicas.map((one) => [
      one.service, one.id, one.version || "stable", one.ready ? "ready" : one.trouble || "loading", `${one.requests} of ${one.slots}`,
      one.memory ? `${Math.round(100 * one.memory)} %` : "–", formatTime(one.seen), describeModels(one.models),
    ]));
  }
}

const describeModels = (models) => (models.length > 3 ? `${models.slice(0, 3).join(", ")} and ${models.length - 3} more` : models.join(", "));

class AdminKeys extends AdminTable {
  connectedCallback() {
    super.connectedCallback();
    this.on("submit", "form", (event) => {
      event.preventDefault();
      this.makeOnce(() => this.make());
    });
  }

  async load() {
    const { keys } = await fetchJson("/v1/admin/keys");
    this.fill(keys.map((key) => [
      key.id, key.tenant, key.scopes.join(", "), createLines(key.use.map(describeUse)), formatDay(key.created), key.is_expired ? "expired" : formatDay(key.expires), formatTime(key.last_used),
      this.createActions(key),
    ]));
  }

  createActions({ id }) {
    const rotate = createButton("Rotate", () => this.makeOnce(() => fetchJson(`/v1/admin/keys/${id}/rotate`, { method: "POST", json: {} })), "quiet small");
    const revoke = createButton("Revoke", ({ detail }) => detail < 2 && this.revoke(id, revoke), "quiet small"); // a double click asks only
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
    const { tenant, scopes, expires, ...limits } = this.part("form").elements;
    const numbers = ["rate_per_minute", "quota_per_day", "tokens_per_minute", "tokens_per_day", "weight"].filter((name) => limits[name].value);
    const json = {
      tenant: tenant.value.trim(), scopes: [...scopes].filter((box) => box.checked).map((box) => box.value),
      ...(expires.value && { expires: new Date(expires.value).toISOString() }), ...Object.fromEntries(numbers.map((name) => [name, limits[name].valueAsNumber])),
    };
    return fetchJson("/v1/admin/keys", { method: "POST", json });
  }

  /** Make a key and show it; a second click meanwhile would make another one, and hide the first for good. */
  makeOnce(make) {
    this.making ??= this.attempt(async () => {
      this.showError(null);
      await this.showMade(await make());
    }).finally(() => (this.making = null));
  }

  /** Show the text of a new key, which nobody can read again. */
  async showMade({ key, id }) {
    this.setText("made-id", id);
    this.part("made").querySelector('[data-part="text"]').textContent = key;
    this.show(true, "made");
    await this.load();
  }
}

const createLines = (texts) => (texts.length ? createNode("span", "", ...texts.flatMap((text) => [createNode("br", ""), text]).slice(1)) : "–");

class AdminUsage extends AdminTable {
  connectedCallback() {
    super.connectedCallback();
    this.on("change", "days", () => this.attempt(() => this.load()));
    this.on("change", "measure", () => this.find());
    this.on("click", "keep", () => save(new Blob([writeCsv(this.listShown())], { type: "text/csv" }), "usage.csv"));
  }

  async load() {
    const days = this.part("days").value;
    const since = new Date(Date.now() - 86_400_000 * (days - 1)).toISOString().slice(0, 10); // today is one of them
    const { usage } = await fetchJson(`/v1/usage?tenant=*&since=${since}`);
    if (this.part("days").value !== days) return; // other days were chosen meanwhile
    this.usage = usage.sort((a, b) => b.day.localeCompare(a.day));
    this.fill(this.usage.map((one) => [
      one.day, one.tenant, one.model || "–", formatNumber(one.requests), formatNumber(one.tokens_in), formatNumber(one.tokens_out), formatNumber(one.pictures), one.cpu_seconds.toFixed(1),
    ]));
  }

  listShown() {
    return (this.usage ?? []).filter((_, at) => !this.part("rows").children[at].hidden);
  }

  /** The rows that are shown, their sum, and a column for each day. */
  find() {
    super.find();
    const shown = this.listShown();
    const measure = this.part("measure").value;
    const days = new Map();
    for (const one of shown) days.set(one.day, (days.get(one.day) ?? 0) + one[measure]);
    for (const name of ["requests", "tokens_in", "tokens_out", "pictures", "cpu_seconds"]) this.setText(name, formatNumber(shown.reduce((sum, one) => sum + one[name], 0)));
    this.show(shown.length > 0, "chart", "keep");
    drawColumns(this.part("chart"), [...days].sort(([a], [b]) => a.localeCompare(b)).map(([label, value]) => ({ label, value })), formatNumber);
  }
}

class AdminAudit extends AdminTable {
  async load() {
    const { entries } = await fetchJson("/v1/admin/audit?limit=500");
    this.fill(entries.map(({ time, actor, act, target, ...rest }) => [formatTime(time), actor, act, target, describeDetails(rest)]));
  }
}

const describeDetails = (rest) => Object.entries(rest).map(([name, value]) => `${name}: ${typeof value === "string" ? value : JSON.stringify(value)}`).join(", ");

for (const [name, kind] of Object.entries({ services: AdminServices, replicas: AdminReplicas, keys: AdminKeys, usage: AdminUsage, audit: AdminAudit })) {
  customElements.define(`fovea-admin-${name}`, kind);
}
