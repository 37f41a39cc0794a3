/** Registers the console's custom elements. Pages use them by tag; nothing else runs on load. */

import { ResultView } from "./result_view.js";
import { Attention } from "./attention.js";
import { Chat } from "./chat.js";
import { Code, Slider } from "./snippet.js";
import { Detect } from "./detect.js";
import { Drop } from "./drop.js";
import { Jobs } from "./jobs.js";
import { JudgeCorrected, JudgeNuggets, JudgeSignificance, JudgeTrust } from "./judge_evidence.js";
import { Heads } from "./heads.js";
import { JudgeAgreement, JudgeBoard, JudgeRankings } from "./judge_results.js";
import { JudgeBatch, JudgePair } from "./judge.js";
import { ForgetKeyButton, ModelChoice } from "./page.js";
import { LiveRegion, Ready } from "./live_region.js";
import { ApiKeyForm } from "./api_key.js";
import { Probe } from "./probe.js";
import { Restore } from "./restore.js";
import { RunTask } from "./run.js";
import { Segment } from "./segment.js";
import { Steering } from "./steering.js";

const ELEMENTS = {
  ready: Ready, "live-region": LiveRegion, key: ForgetKeyButton, "api-key": ApiKeyForm, model: ModelChoice, slider: Slider, code: Code, drop: Drop,
  result: ResultView, segment: Segment, detect: Detect, restore: Restore, chat: Chat, attention: Attention,
  steering: Steering, heads: Heads,
  jobs: Jobs, run: RunTask, probe: Probe,
  "judge-pair": JudgePair, "judge-batch": JudgeBatch, "judge-agreement": JudgeAgreement, "judge-rankings": JudgeRankings,
  "judge-trust": JudgeTrust, "judge-significance": JudgeSignificance, "judge-corrected": JudgeCorrected, "judge-nuggets": JudgeNuggets,
  "judge-board": JudgeBoard,
};

for (const [name, element] of Object.entries(ELEMENTS)) customElements.define(`fovea-${name}`, element);
