/** Loads the modules of the custom elements that a page has, and no others; each module defines its elements. */

import "./frame.js";
import { wasUsed } from "./gateway.js";

const MODULES = {
  "./page.js": ["key", "model"],
  "./snippet.js": ["slider", "code"],
  "./api_key.js": ["api-key"],
  "./drop.js": ["drop"],
  "./result_view.js": ["result"],
  "./segment.js": ["segment"],
  "./detect.js": ["detect"],
  "./restore.js": ["restore"],
  "./chat.js": ["chat"],
  "./attention.js": ["attention"],
  "./steering.js": ["steering"],
  "./heads.js": ["heads"],
  "./jobs.js": ["jobs"],
  "./run.js": ["run"],
  "./probe.js": ["probe"],
  "./judge.js": ["judge-pair", "judge-batch"],
  "./judge_results.js": ["judge-agreement", "judge-rankings", "judge-board"],
  "./judge_evidence.js": ["judge-trust", "judge-significance", "judge-corrected", "judge-nuggets"],
  "./tabs.js": ["tabs"],
  "./model_list.js": ["models"],
  "./live_region.js": ["ready", "readiness"],
  "./run_view.js": wasUsed() ? ["runs", "recent-runs"] : ["runs"],
};

/** Load what the elements of a document need; also called after a part of the page was replaced. */
export function loadElements() {
  for (const [module, names] of Object.entries(MODULES)) {
    if (document.querySelector(names.map((name) => `fovea-${name}`).join())) import(module);
  }
}

loadElements();
document.addEventListener("fovea-page", loadElements);
