/** Defines the console's elements. Pages use them by tag; nothing else runs on load. */

import { Answer } from "./answer.js";
import { Attention } from "./attention.js";
import { Chat } from "./chat.js";
import { Code, Slider } from "./snippet.js";
import { Detect } from "./detect.js";
import { Drop } from "./drop.js";
import { Jobs } from "./jobs.js";
import { JudgeAgreement, JudgeBoard, JudgeRankings } from "./judged.js";
import { JudgeBatch, JudgePair } from "./judge.js";
import { KeyHolder, ModelChoice } from "./page.js";
import { Live, Ready } from "./live.js";
import { Lock } from "./lock.js";
import { Memory } from "./memory.js";
import { Probe } from "./probe.js";
import { Restore } from "./restore.js";
import { RunTask } from "./run.js";
import { Segment } from "./segment.js";
import { Sessions } from "./sessions.js";

const ELEMENTS = {
  ready: Ready, live: Live, key: KeyHolder, lock: Lock, model: ModelChoice, slider: Slider, code: Code, drop: Drop,
  answer: Answer, segment: Segment, detect: Detect, restore: Restore, chat: Chat, attention: Attention, memory: Memory, jobs: Jobs, run: RunTask,
  probe: Probe, sessions: Sessions,
  "judge-pair": JudgePair, "judge-batch": JudgeBatch, "judge-agreement": JudgeAgreement, "judge-rankings": JudgeRankings,
  "judge-board": JudgeBoard,
};

for (const [name, element] of Object.entries(ELEMENTS)) customElements.define(`fovea-${name}`, element);
