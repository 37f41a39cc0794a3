/** Page of traffic: one form a service, with the percent of each version and the shadow. */

import { CustomElement, partOf } from "../../js/custom_element.js";
import { call } from "../../js/gateway.js";

const ROOT = "/v1/admin/traffic";

class Traffic extends CustomElement {
  connectedCallback() {
    this.attempt(() => this.load());
  }

  async load() {
    const { services } = await (await call(ROOT)).json();
    this.part("list").replaceChildren(...services.map((one) => this.createForm(one)));
    this.show(services.length === 0, "nothing");
  }

  createForm({ service, plan, versions }) {
    const form = this.cloneTemplate("service");
    form.setAttribute("aria-label", service);
    partOf(form, "name").textContent = service;
    const named = [...new Set([...Object.keys(versions), ...Object.keys(plan?.percent ?? {}), plan?.shadow].filter(Boolean))].sort();
    partOf(form, "state").textContent = describeState(plan, versions, named);
    partOf(form, "shares").append(...named.map((version) => this.createShare(version, plan?.percent[version] ?? 0)));
    const { shadow, shadow_percent: copied } = form.elements;
    shadow.append(...named.map((version) => new Option(version)));
    shadow.value = plan?.shadow ?? "";
    if (plan) copied.value = plan.shadow_percent;
    for (const node of form.querySelectorAll(".field, .actions")) node.hidden = named.length === 0 && !plan;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.change(form, "PUT", readPlan(form));
    });
    partOf(form, "clear").addEventListener("click", () => this.change(form, "DELETE"));
    form.dataset.service = service;
    return form;
  }

  createShare(version, percent) {
    const field = this.cloneTemplate("share");
    partOf(field, "version").textContent = `Version ${version}: percent of requests`;
    Object.assign(field.querySelector("input"), { name: version, value: percent });
    return field;
  }

  change(form, method, json) {
    this.showError(null);
    return this.attempt(async () => {
      const changed = await (await call(`${ROOT}/${encodeURIComponent(form.dataset.service)}`, { method, json })).json();
      const drawn = this.createForm(changed);
      form.replaceWith(drawn);
      drawn.querySelector("button").focus();
    });
  }
}

function readPlan(form) {
  const shares = [...partOf(form, "shares").querySelectorAll("input")].filter((input) => input.valueAsNumber > 0);
  const { shadow, shadow_percent: copied } = form.elements;
  return { percent: Object.fromEntries(shares.map((input) => [input.name, input.valueAsNumber])), shadow: shadow.value || null, shadow_percent: copied.valueAsNumber || 0 };
}

function describeState(plan, versions, named) {
  const replicas = Object.entries(versions).map(([name, count]) => `${name || "stable"}: ${count} ready replica${count === 1 ? "" : "s"}`).join(", ") || "no ready replica";
  if (!named.length) return `${replicas}. There is only one version.`;
  const left = plan ? 100 - Object.values(plan.percent).reduce((sum, share) => sum + share, 0) : null;
  return `${replicas}. ${plan ? `The stable version answers ${left} %.` : "All versions answer alike."}`;
}

customElements.define("fovea-traffic", Traffic);
