/** One answer of a chat over OpenAI's protocol: streamed, or as a job; its text stays whatever happens. */

import { call, events } from "./gateway.js";

/**
 * Stream an answer. `answer` gets `text`, `scores`, `usage`, `longctx` and `first` (when the first token came) as they
 * come; `onText` is called after each piece.
 */
export async function streamAnswer(path, json, answer, signal, onText) {
  const response = await call(path, { method: "POST", json: { ...json, stream: true, stream_options: { include_usage: true } }, signal });
  for await (const data of events(response)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw Object.assign(new Error(chunk.error.message), { title: "The answer broke off" });
    answer.scores.push(...(chunk.choices?.[0]?.logprobs?.content ?? []));
    answer.longctx = chunk.longctx ?? answer.longctx;
    answer.usage = chunk.usage ?? answer.usage;
    answer.finish = chunk.choices?.[0]?.finish_reason ?? answer.finish;
    const text = chunk.choices?.[0]?.delta?.content;
    if (!text) continue;
    answer.first ??= performance.now();
    answer.text += text;
    onText();
  }
  throw Object.assign(new Error("The connection closed before the end of the answer."), { title: "The answer broke off" });
}

/** Take a whole answer, as a job gives it. */
export function takeAnswer(completion, answer) {
  const [choice] = completion.choices;
  answer.text += choice.message.content;
  answer.scores = choice.logprobs?.content ?? [];
  Object.assign(answer, { longctx: completion.longctx, usage: completion.usage, finish: choice.finish_reason });
}

/** What an answer cost, in words. */
export function describeUsage({ usage, started, first }) {
  const seconds = (performance.now() - (first ?? started)) / 1000;
  // The first token includes the prefill, so the rate counts those after it.
  const rate = first ? (usage.completion_tokens - 1) / seconds : usage.completion_tokens / seconds;
  const { longctx } = usage;
  const cached = longctx?.cached_tokens ? ` (${longctx.cached_tokens} from the cache)` : "";
  const parts = [`${usage.prompt_tokens} tokens in${cached}`, `${usage.completion_tokens} out`];
  if (Number.isFinite(rate) && rate > 0) parts.push(`${rate.toFixed(1)} tokens/s`);
  if (longctx && longctx.method !== "dense") parts.push(`${longctx.method}: ${Math.round(100 * longctx.kv_ratio)} % of dense memory`);
  if (longctx?.fallback) parts.push(longctx.fallback);
  if (longctx?.budget_missed) parts.push(longctx.budget_missed);
  if (first) parts.push(`first after ${((first - started) / 1000).toFixed(2)} s`);
  if (longctx?.context_left != null) parts.push(`${longctx.context_left.toLocaleString("en")} tokens of context left`);
  return parts.join(" · ");
}
