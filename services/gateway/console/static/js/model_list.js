/** Page of models: readiness in place, and filters. */

import { CustomElement } from "./custom_element.js";
import { watchModels } from "./live_region.js";

class ModelList extends CustomElement {
  connectedCallback() {
    this.on("input", "filters", () => this.filter());
    this.on("submit", "filters", (event) => event.preventDefault());
    watchModels(this, (models) => this.showReadiness(models));
    this.filter();
  }

  showReadiness(models) {
    for (const { id, ready } of models) {
      const state = this.querySelector(`[data-model="${CSS.escape(id)}"] fovea-ready`);
      if (state && state.hasAttribute("data-ready") !== ready) state.ready = ready;
    }
    if (!this.querySelector("[data-model]") && models.length) location.reload();
    this.filter();
  }

  filter() {
    const { query, task, data, ready } = this.part("filters").elements;
    const words = query.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const card of this.querySelectorAll("article.card")) {
      const text = card.textContent.toLowerCase();
      const fits = words.every((word) => text.includes(word)) && (!task.value || card.dataset.task === task.value)
        && (!data.value || card.dataset.data === data.value) && (!ready.checked || card.querySelector("[data-ready]"));
      card.hidden = !fits;
      shown += fits ? 1 : 0;
    }
    for (const section of this.querySelectorAll(".service")) section.hidden = !section.querySelector("article.card:not([hidden])");
    this.setText("count", `${shown} shown`);
  }
}

customElements.define("fovea-models", ModelList);
