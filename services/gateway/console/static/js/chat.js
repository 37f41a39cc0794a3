/** A conversation with a model over OpenAI's chat protocol: streamed, or as a job. */

import { call, events } from "./gateway.js";
import { selectedModel, readValues } from "./form.js";
import { jobNote, submit } from "./submit.js";
import { CustomElement } from "./custom_element.js";

export class Chat extends CustomElement {
  connectedCallback() {
    this.messages = [];
    this.on("submit", "composer", (event) => this.onSubmit(event));
    this.on("submit", "options", (event) => event.preventDefault());
    this.on("keydown", "message", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) this.onSubmit(event);
    });
    this.on("click", "stop", () => this.running?.abort());
    this.on("click", "clear", () => this.clear());
    this.addEventListener("click", ({ target }) => target.closest("[data-starter]") && this.ask(target.textContent));
  }

  onSubmit(event) {
    event.preventDefault();
    const text = this.part("message").value.trim();
    if (text && !this.running) this.ask(text);
  }

  clear() {
    this.running?.abort();
    this.messages = [];
    this.querySelectorAll(".turn").forEach((turn) => turn.remove());
    this.show(true, "nothing");
    this.showError(null);
    this.setText("usage", "\u00a0");
    this.part("message").focus();
  }

  async ask(text) {
    this.part("message").value = "";
    this.messages.push({ role: "user", content: text });
    this.addTurn("You", text).classList.add("turn-mine");
    this.setBusy(true);
    const started = performance.now();
    const turn = this.addTurn(selectedModel(this), "");
    turn.classList.add("turn-writing");
    turn.setAttribute("aria-busy", "true");
    try {
      await this.requestAnswer(turn.querySelector('[data-part="text"]'), started);
    } catch (problem) {
      if (problem.name === "AbortError") turn.classList.add("turn-cut");
      else this.restoreQuestion(problem, text, turn);
    } finally {
      const written = turn.querySelector('[data-part="text"]').textContent;
      if (turn.isConnected) this.messages.push({ role: "assistant", content: written });
      turn.classList.remove("turn-writing");
      turn.setAttribute("aria-busy", "false");
      this.setBusy(false);
    }
  }

  /** Put the question back into the input, so that nothing typed is lost. */
  restoreQuestion(problem, text, turn) {
    this.showError(problem);
    turn.previousElementSibling.remove();
    turn.remove();
    this.messages.pop();
    this.part("message").value ||= text;
  }

  async requestAnswer(output, started) {
    const system = this.part("system").value.trim();
    const asJob = this.part("as-job").checked;
    const json = {
      ...readValues(this.part("options")),
      model: selectedModel(this),
      messages: [...(system ? [{ role: "system", content: system }] : []), ...this.newMessages()],
      ...this.memory?.requestFields,
      ...this.querySelector("fovea-attention")?.requestFields,
    };
    const { signal } = this.running;
    if (!asJob) return this.stream({ ...json, stream: true, stream_options: { include_usage: true } }, output, started);
    const onJob = (job) => this.showProgress(job.status === "queued" ? undefined : job.progress, jobNote(job));
    const completion = await (await submit(this.dataset.path, { json, signal, asJob, onJob })).json();
    output.textContent = completion.choices[0].message.content;
    await this.showLongctx(completion.longctx, output);
    return this.showUsage(completion.usage, started, null);
  }

  async stream(json, output, started) {
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
        output.append(text);
        this.scrollToEnd();
      }
      longctx = chunk.longctx ?? longctx;
      if (chunk.usage) this.showUsage(chunk.usage, started, first);
    }
    await this.showLongctx(longctx, output);
  }

  /** The session and document panel, where the model has one. */
  get memory() {
    return this.querySelector("fovea-session-memory");
  }

  newMessages() {
    return this.memory?.newMessages(this.messages) ?? this.messages;
  }

  /** Show what came with the answer: citations and the state of the memory. */
  async showLongctx(longctx, output) {
    if (longctx && this.memory) await this.memory.showLongctx(longctx, output.closest(".turn"));
    this.scrollToEnd();
  }

  showUsage(usage, started, first) {
    const now = performance.now();
    const seconds = (now - (first ?? started)) / 1000;
    // The first token includes the prefill, so the rate counts those after it.
    const rate = first === null ? usage.completion_tokens / seconds : (usage.completion_tokens - 1) / seconds;
    const { longctx } = usage;
    const cached = longctx?.cached_tokens ? ` (${longctx.cached_tokens} from the cache)` : "";
    const parts = [`${usage.prompt_tokens} tokens in${cached}`, `${usage.completion_tokens} out`];
    if (Number.isFinite(rate) && rate > 0) parts.push(`${rate.toFixed(1)} tokens/s`);
    if (longctx && longctx.method !== "dense") parts.push(`${longctx.method}: ${Math.round(100 * longctx.kv_ratio)} % of dense memory`);
    if (longctx?.fallback) parts.push(longctx.fallback);
    if (first !== null) parts.push(`first after ${((first - started) / 1000).toFixed(2)} s`);
    if (longctx?.context_left != null) parts.push(`${longctx.context_left.toLocaleString("en")} tokens of context left`);
    this.setText("usage", parts.join(" · "));
  }

  addTurn(who, text) {
    this.show(false, "nothing");
    const turn = this.cloneTemplate("turn");
    turn.querySelector('[data-part="who"]').textContent = who;
    turn.querySelector('[data-part="text"]').textContent = text;
    this.part("turns").append(turn);
    this.scrollToEnd(true);
    return turn;
  }

  /** Scroll to the end, unless the reader has scrolled away from it. */
  scrollToEnd(always = false) {
    const turns = this.part("turns");
    const near = turns.scrollHeight - turns.scrollTop - turns.clientHeight < 80;
    if (always || near) turns.scrollTop = turns.scrollHeight;
  }

  setBusy(on) {
    this.running = on ? new AbortController() : null;
    if (on) this.showError(null);
    else this.showProgress(null);
    this.show(on, "stop");
    this.show(!on, "send");
    if (!on) this.part("message").focus();
  }
}
