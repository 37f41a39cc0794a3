/** A conversation with a model: streamed, or as a job. Knows OpenAI's chat protocol; knows no model. */

import { call, events } from "./gateway.js";
import { chosenModel, values } from "./form.js";
import { jobNote, submit } from "./submit.js";
import { Part } from "./element.js";

export class Chat extends Part {
  connectedCallback() {
    this.messages = [];
    this.on("submit", "composer", (event) => this.sent(event));
    this.on("submit", "options", (event) => event.preventDefault());
    this.on("keydown", "message", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) this.sent(event);
    });
    this.on("click", "stop", () => this.running?.abort());
    this.on("click", "clear", () => this.clear());
    this.addEventListener("click", ({ target }) => target.closest("[data-starter]") && this.ask(target.textContent));
  }

  sent(event) {
    event.preventDefault();
    const text = this.part("message").value.trim();
    if (text && !this.running) this.ask(text);
  }

  clear() {
    this.running?.abort();
    this.messages = [];
    this.querySelectorAll(".turn").forEach((turn) => turn.remove());
    this.show(true, "nothing");
    this.fault(null);
    this.say("usage", "\u00a0");
    this.part("message").focus();
  }

  async ask(text) {
    this.part("message").value = "";
    this.messages.push({ role: "user", content: text });
    this.turn("You", text).classList.add("turn-mine");
    this.busy(true);
    const started = performance.now();
    const turn = this.turn(chosenModel(this), "");
    turn.classList.add("turn-writing");
    turn.setAttribute("aria-busy", "true");
    try {
      await this.answer(turn.querySelector('[data-part="text"]'), started);
    } catch (problem) {
      if (problem.name === "AbortError") turn.classList.add("turn-cut");
      else this.failed(problem, text, turn);
    } finally {
      const written = turn.querySelector('[data-part="text"]').textContent;
      if (turn.isConnected) this.messages.push({ role: "assistant", content: written });
      turn.classList.remove("turn-writing");
      turn.setAttribute("aria-busy", "false");
      this.busy(false);
    }
  }

  /** Give the question back to the writer, so that nothing typed is lost. */
  failed(problem, text, turn) {
    this.fault(problem);
    turn.previousElementSibling.remove();
    turn.remove();
    this.messages.pop();
    this.part("message").value ||= text;
  }

  async answer(place, started) {
    const system = this.part("system").value.trim();
    const asJob = this.part("as-job").checked;
    const json = {
      ...values(this.part("options")),
      model: chosenModel(this),
      messages: [...(system ? [{ role: "system", content: system }] : []), ...this.unsaid()],
      ...this.memory?.request,
      ...this.querySelector("fovea-attention")?.request,
    };
    const { signal } = this.running;
    if (!asJob) return this.stream({ ...json, stream: true, stream_options: { include_usage: true } }, place, started);
    const onJob = (job) => this.progress(job.status === "queued" ? undefined : job.progress, jobNote(job));
    const whole = await (await submit(this.dataset.path, { json, signal, asJob, onJob })).json();
    place.textContent = whole.choices[0].message.content;
    await this.told(whole.longctx, place);
    return this.usage(whole.usage, started, null);
  }

  async stream(json, place, started) {
    const response = await call(this.dataset.path, { method: "POST", json, signal: this.running.signal });
    let first = null;
    let longctx = null;
    for await (const data of events(response)) {
      if (data === "[DONE]") break;
      const chunk = JSON.parse(data);
      if (chunk.error) throw Object.assign(new Error(chunk.error.message), { title: "The answer broke off" });
      const text = chunk.choices?.[0]?.delta?.content;
      if (text) {
        first ??= performance.now();
        place.append(text);
        this.follow();
      }
      longctx = chunk.longctx ?? longctx;
      if (chunk.usage) this.usage(chunk.usage, started, first);
    }
    await this.told(longctx, place);
  }

  /** What a model with attention of its own keeps between requests, where this is one. */
  get memory() {
    return this.querySelector("fovea-memory");
  }

  unsaid() {
    return this.memory?.unsaid(this.messages) ?? this.messages;
  }

  /** What came beside the answer. */
  async told(longctx, place) {
    if (longctx && this.memory) await this.memory.told(longctx, place.closest(".turn"));
    this.follow();
  }

  usage(usage, started, first) {
    const now = performance.now();
    const seconds = (now - (first ?? started)) / 1000;
    // The first token belongs to the prompt's reading, so the rate counts those after it.
    const rate = first === null ? usage.completion_tokens / seconds : (usage.completion_tokens - 1) / seconds;
    const parts = [`${usage.prompt_tokens} tokens in`, `${usage.completion_tokens} out`];
    if (Number.isFinite(rate) && rate > 0) parts.push(`${rate.toFixed(1)} tokens/s`);
    const { longctx } = usage;
    if (longctx && longctx.method !== "dense") parts.push(`${longctx.method}: ${Math.round(100 * longctx.kv_ratio)} % of dense memory`);
    if (longctx?.fallback) parts.push(longctx.fallback);
    if (first !== null) parts.push(`first after ${((first - started) / 1000).toFixed(2)} s`);
    this.say("usage", parts.join(" · "));
  }

  turn(who, text) {
    this.show(false, "nothing");
    const turn = this.copyOf("turn");
    turn.querySelector('[data-part="who"]').textContent = who;
    turn.querySelector('[data-part="text"]').textContent = text;
    this.part("turns").append(turn);
    this.follow(true);
    return turn;
  }

  /** Keep the end in view, unless the reader has scrolled away from it. */
  follow(always = false) {
    const turns = this.part("turns");
    const near = turns.scrollHeight - turns.scrollTop - turns.clientHeight < 80;
    if (always || near) turns.scrollTop = turns.scrollHeight;
  }

  busy(on) {
    this.running = on ? new AbortController() : null;
    if (on) this.fault(null);
    else this.progress(null);
    this.show(on, "stop");
    this.show(!on, "send");
    if (!on) this.part("message").focus();
  }
}
