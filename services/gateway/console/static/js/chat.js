/**
 * A conversation with a model over OpenAI's chat protocol: streamed, or as a job. With a steering vector each question
 * has two answers beside each other, and each of them goes on in a conversation of its own.
 */

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
    this.querySelectorAll(".turn, .turn-pair").forEach((turn) => turn.remove());
    this.heads?.close();
    this.show(true, "nothing");
    this.showError(null);
    this.setText("usage", "\u00a0");
    this.part("message").focus();
  }

  async ask(text) {
    this.part("message").value = "";
    this.messages.push({ role: "user", content: text });
    const question = this.addTurn("You", text);
    question.classList.add("turn-mine");
    this.setBusy(true);
    const answers = this.addAnswers();
    const problems = await this.writeAnswers(answers);
    const problem = problems.find((one) => one.name !== "AbortError");
    if (problem) this.restoreQuestion(problem, text, question, answers);
    else this.storeAnswers(answers, problems.length > 0);
    this.setBusy(false);
  }

  /** The answers to write: one, or one without the steering vector and one with it. */
  addAnswers() {
    const model = selectedModel(this);
    const intervention = this.steering?.intervention;
    if (!intervention) return [this.addAnswer(this.part("turns"), model, null)];
    const pair = this.cloneTemplate("answers");
    this.part("turns").append(pair);
    return [this.addAnswer(pair, `${model}, as it is`, null), this.addAnswer(pair, `${model}, ${this.steering.label}`, intervention)];
  }

  addAnswer(place, who, intervention) {
    const turn = this.addTurn(who, "", place);
    turn.classList.add("turn-writing");
    turn.setAttribute("aria-busy", "true");
    return { turn, output: turn.querySelector('[data-part="text"]'), intervention, scores: [], started: performance.now() };
  }

  /** Write all answers; returns what went wrong, and ends all when one does. */
  async writeAnswers(answers) {
    const { running } = this;
    const seed = Math.floor(Math.random() * 2 ** 31); // so that two answers differ by the vector, not by chance
    const written = await Promise.allSettled(
      answers.map((answer) =>
        this.requestAnswer(answer, seed).catch((problem) => {
          running.abort();
          throw problem;
        }),
      ),
    );
    for (const { turn } of answers) {
      turn.classList.remove("turn-writing");
      turn.setAttribute("aria-busy", "false");
    }
    return written.filter((one) => one.status === "rejected").map((one) => one.reason);
  }

  /** Keep the answers for the next question, unless the conversation was cleared meanwhile. */
  storeAnswers(answers, isCut) {
    if (!answers[0].turn.isConnected) return;
    const [plain, steered] = answers.map(({ output }) => output.textContent);
    this.messages.push({ role: "assistant", content: plain, steered });
    for (const answer of answers) {
      answer.turn.classList.toggle("turn-cut", isCut);
      if (answer.usage) this.heads?.trace(answer);
    }
    this.scrollToEnd();
  }

  /** Put the question back into the input, so that nothing typed is lost. */
  restoreQuestion(problem, text, question, answers) {
    this.showError(problem);
    question.remove();
    for (const { turn } of answers) (turn.closest(".turn-pair") ?? turn).remove();
    this.messages.pop();
    this.part("message").value ||= text;
  }

  async requestAnswer(answer, seed) {
    const system = this.part("system").value.trim();
    const asJob = this.part("as-job").checked;
    const json = {
      ...(this.steering?.isOpen && { seed, logprobs: true }),
      ...readValues(this.part("options")),
      model: selectedModel(this),
      messages: [...(system ? [{ role: "system", content: system }] : []), ...this.newMessages(answer.intervention)],
      ...this.memory?.requestFields,
      ...this.querySelector("fovea-attention")?.requestFields,
      ...(answer.intervention && { interventions: [answer.intervention] }),
    };
    answer.request = json;
    const { signal } = this.running;
    if (!asJob) return this.stream({ ...json, stream: true, stream_options: { include_usage: true } }, answer);
    const onJob = (job) => this.showProgress(job.status === "queued" ? undefined : job.progress, jobNote(job));
    const completion = await (await submit(this.dataset.path, { json, signal, asJob, onJob })).json();
    const [choice] = completion.choices;
    answer.output.textContent = choice.message.content;
    answer.scores = choice.logprobs?.content ?? [];
    await this.showLongctx(completion.longctx, answer.output);
    return this.showUsage(completion.usage, answer, null);
  }

  async stream(json, answer) {
    const response = await call(this.dataset.path, { method: "POST", json, signal: this.running.signal });
    let first = null;
    let longctx = null;
    for await (const data of events(response)) {
      if (data === "[DONE]") break;
      const chunk = JSON.parse(data);
      if (chunk.error) throw Object.assign(new Error(chunk.error.message), { title: "The answer broke off" });
      const text = chunk.choices?.[0]?.delta?.content;
      answer.scores.push(...(chunk.choices?.[0]?.logprobs?.content ?? []));
      if (text) {
        first ??= performance.now();
        answer.output.append(text);
        this.scrollToEnd();
      }
      longctx = chunk.longctx ?? longctx;
      if (chunk.usage) this.showUsage(chunk.usage, answer, first);
    }
    await this.showLongctx(longctx, answer.output);
  }

  /** The drawer that steers, where a model can be steered. */
  get steering() {
    return this.querySelector("fovea-steering");
  }

  /** The panel with the heads of a token, where the key may look inside. */
  get heads() {
    return this.querySelector("fovea-heads");
  }

  /** The session and document panel, where the model has one. */
  get memory() {
    return this.querySelector('[data-part="panel"]');
  }

  /** The messages of a request, with the answers of the steered conversation or of the plain one. */
  newMessages(isSteered) {
    const messages = this.messages.map(({ role, content, steered }) => ({ role, content: isSteered ? (steered ?? content) : content }));
    return this.memory?.newMessages(messages) ?? messages;
  }

  /** Show what came with the answer: citations and the state of the memory. */
  async showLongctx(longctx, output) {
    if (longctx && this.memory) await this.memory.showLongctx(longctx, output.closest(".turn"));
    this.scrollToEnd();
  }

  showUsage(usage, answer, first) {
    answer.usage = usage;
    if (answer.intervention) return; // the line below is about the answer without
    const { started } = answer;
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
    if (longctx?.budget_missed) parts.push(longctx.budget_missed);
    if (first !== null) parts.push(`first after ${((first - started) / 1000).toFixed(2)} s`);
    if (longctx?.context_left != null) parts.push(`${longctx.context_left.toLocaleString("en")} tokens of context left`);
    this.setText("usage", parts.join(" · "));
  }

  addTurn(who, text, place = this.part("turns")) {
    this.show(false, "nothing");
    const turn = this.cloneTemplate("turn");
    turn.querySelector('[data-part="who"]').textContent = who;
    turn.querySelector('[data-part="text"]').textContent = text;
    place.append(turn);
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
