/**
 * A conversation with a model: questions, answers beside each other where two are compared, branches and history. How an
 * answer is fetched is `chat_stream.js`, what a turn looks like `chat_turns.js`, the tree of turns `chat_tree.js`.
 */

import { load } from "./chat_history.js";
import { describeUsage, streamAnswer, takeAnswer } from "./chat_stream.js";
import { Conversation } from "./chat_tree.js";
import { ChatTurns } from "./chat_turns.js";
import { readValues, selectedModel } from "./form.js";
import { RunForm } from "./run_form.js";
import { countOthers } from "./submit.js";
import "./attention.js";
import "./heads.js";
import "./steering.js";

/** Milliseconds after which the part of an answer that was written is stored again. */
const STORE_MS = 2000;

const CONTINUE = "Continue exactly where your last answer stopped. Do not repeat any of it.";

class Chat extends RunForm {
  static answerParts = [];

  connectedCallback() {
    super.connectedCallback();
    this.conversation = new Conversation();
    this.turns = new ChatTurns(this);
    this.again = () => this.run();
    this.on("submit", "options", (event) => event.preventDefault());
    this.on("keydown", "message", (event) => this.onKey(event));
    this.on("click", "clear", () => this.clear());
    this.addEventListener("click", ({ target }) => target.closest("[data-starter]") && this.ask(target.textContent));
    this.addEventListener("fovea-model", () => (this.part("message").placeholder = `Message ${selectedModel(this)}`));
    this.openChat();
  }

  get form() {
    return this.part("composer");
  }

  /** Enter sends, Escape stops or leaves a question as it was, the up arrow in an empty field edits the last question. */
  onKey(event) {
    const { key, shiftKey, isComposing } = event;
    if (key === "Escape" && this.edited) this.leaveEdit();
    else if (key === "Escape") this.running?.abort();
    else if (key === "ArrowUp" && !this.part("message").value) this.edit(this.conversation.path().findLast(({ role }) => role === "user"));
    else if (key === "Enter" && !shiftKey && !isComposing) this.run();
    else return;
    event.preventDefault();
  }

  run() {
    const text = this.part("message").value.trim();
    return text && !this.isWriting ? this.ask(text) : undefined;
  }

  ask(text) {
    this.part("message").value = "";
    if (this.edited) this.conversation.leave(this.edited);
    this.leaveEdit();
    this.conversation.add("user", { content: text });
    return this.answer();
  }

  /** Write an answer behind the present turn, or go on with one. */
  answer(continued = null) {
    this.continued = continued;
    return super.run();
  }

  async request(signal) {
    const { conversation, continued } = this;
    const node = continued ?? conversation.add("assistant", { contents: [], labels: [] });
    node.cut = null;
    this.turns.draw();
    const answers = this.turns.begin(node, this.listVariants());
    const isWritten = () => answers.some(({ text }) => text);
    const storing = setInterval(() => isWritten() && this.store(conversation, node, answers, "cut off"), STORE_MS); // the page may be left
    const problems = await this.writeAnswers(answers, node, signal);
    clearInterval(storing);
    const problem = problems.find((one) => one.name !== "AbortError");
    if (this.conversation !== conversation) return this.store(conversation, node, answers, "stopped"); // a new one was begun meanwhile
    this.again = () => this.run();
    if (problem && !isWritten()) this.giveBack(node);
    else await this.keep(node, answers, problems);
    if (problem) throw problem;
    return undefined;
  }

  /** What is asked: once, or twice where a steering vector, another model or another attention method is compared. */
  listVariants() {
    const model = selectedModel(this);
    const intervention = this.steering?.intervention;
    if (intervention) return [{ label: `${model}, as it is`, model }, { label: `${model}, ${this.steering.label}`, model, intervention }];
    const [other, method] = ["compare-model", "compare-method"].map((name) => this.part(name)?.value);
    if (!other && !method) return [{ label: model, model }];
    const mine = this.querySelector("fovea-attention")?.method;
    const second = { model: other || model, ...(method && { longctx: { method } }) };
    return [{ label: [model, mine].filter(Boolean).join(", "), model }, { label: [second.model, method || mine].filter(Boolean).join(", "), ...second }];
  }

  /** Write all answers; returns what went wrong, and ends all when one does. */
  async writeAnswers(answers, node, signal) {
    this.started = performance.now();
    const { running } = this;
    const seed = Math.floor(Math.random() * 2 ** 31); // so that two answers differ by what is compared, not by chance
    const written = await Promise.allSettled(answers.map(async (answer, column) => {
      try {
        await this.writeAnswer(answer, this.buildRequest(answer, { seed, column, count: answers.length, isContinued: this.continued === node }), signal);
      } catch (problem) {
        running.abort();
        throw problem;
      }
    }));
    this.milliseconds = performance.now() - this.started;
    return written.filter(({ status }) => status === "rejected").map(({ reason }) => reason);
  }

  async writeAnswer(answer, json, signal) {
    answer.request = json;
    const wait = this.turns.wait(answer, () => countOthers(json.model));
    try {
      if (this.runsAsJob) takeAnswer(await (await this.send(this.dataset.path, { json, signal })).json(), answer);
      else await streamAnswer(this.dataset.path, json, answer, signal, () => this.turns.write(answer));
    } finally {
      clearInterval(wait);
      this.turns.finish(answer);
    }
    if (answer.longctx && this.memory) await this.memory.showLongctx(answer.longctx, answer.turn);
    if (answer.usage && !answer.intervention && answer.column === 0) this.setText("usage", describeUsage(answer));
  }

  /** The request of an answer; without one, that of the text in the composer. */
  buildRequest(answer, { seed, column = 0, count = 1, isContinued = false } = {}) {
    const system = this.part("system").value.trim();
    const messages = this.conversation.messages(column);
    if (isContinued) messages.push({ role: "user", content: CONTINUE });
    return {
      ...((this.steering?.isOpen || count > 1) && { seed }),
      ...(this.steering?.isOpen && { logprobs: true }),
      ...readValues(this.part("options")),
      model: answer.model,
      messages: [...(system ? [{ role: "system", content: system }] : []), ...(this.memory?.newMessages(messages) ?? messages)],
      ...this.memory?.requestFields,
      ...this.querySelector("fovea-attention")?.requestFields,
      ...(answer.settings && { longctx: answer.settings }),
      ...(answer.intervention && { interventions: [answer.intervention] }),
    };
  }

  async describeRequest() {
    const json = this.buildRequest(this.listVariants()[0]);
    const text = this.part("message").value.trim();
    if (text || !json.messages.length) json.messages.push({ role: "user", content: text || "Say hello." });
    return { path: this.dataset.path, json };
  }

  /** Keep an answer, also one that broke off: what was written is never dropped. */
  async keep(node, answers, problems) {
    const isLong = answers.some(({ finish }) => finish === "length");
    const [problem] = problems.filter((one) => one.name !== "AbortError");
    const stored = this.store(this.conversation, node, answers, problem ? "cut off" : problems.length ? "stopped" : isLong ? "longest answer reached" : null);
    this.turns.draw(answers);
    if (!problems.length) for (const answer of answers) if (answer.usage && answer.scores.length) this.heads?.trace(answer);
    await stored;
    const [{ request, text, usage }] = answers;
    this.remember({ path: this.dataset.path, request, answer: { model: request.model, choices: [{ message: { content: text } }], usage } }).catch(() => {});
  }

  /** Store what was written by now in the history and the address; one time after the other. */
  store(conversation, node, answers, cut) {
    Object.assign(node, { contents: answers.map(({ text }) => text), labels: answers.map(({ label }) => label), cut });
    this.storing = (this.storing ?? Promise.resolve()).then(async () => {
      await this.history?.keep(conversation, answers[0].model);
      if (this.conversation !== conversation) return;
      const url = new URL(location.href);
      url.searchParams.set("chat", conversation.id);
      url.searchParams.delete("run");
      history.replaceState(null, "", url);
    }).catch(() => {});
    return this.storing;
  }

  /** Put a question that got no answer back into the input, so that nothing typed is lost; one that has others keeps them. */
  giveBack(node) {
    const { conversation } = this;
    const question = conversation.find(node.parent);
    const other = conversation.undo(node);
    if (other) this.again = () => this.retry(other);
    else {
      const before = conversation.undo(question);
      if (before || !this.part("message").value) this.edit(before, question.content);
    }
    this.turns.draw();
  }

  actionsFor(problem, wantsJob) {
    const last = this.conversation.path().at(-1);
    const actions = last?.cut ? [["Continue", () => this.answer(last)], ["Try again", () => this.retry(last)]] : [["Try again", () => this.again()]];
    if (!this.runsAsJob && (wantsJob || problem.status !== 422)) {
      actions.push(["Run as a job", () => {
        this.part("as-job").checked = true;
        return last?.cut ? this.retry(last) : this.again();
      }]);
    }
    return [400, 401, 403, 422].includes(problem.status) ? [] : actions;
  }

  /** Another answer to the same question, as a branch. */
  retry(node) {
    this.conversation.leave(node);
    return this.answer();
  }

  /** Edit a question: its text goes into the input, and sending it begins a branch. */
  edit(node, text = node?.content) {
    if (text === undefined) return;
    if (!this.edited) this.draft = this.part("message").value;
    this.edited = node;
    Object.assign(this.part("message"), { value: text }).focus();
  }

  /** Edit no question any more; what was being written before comes back. */
  leaveEdit() {
    if (this.edited) this.part("message").value = this.draft;
    this.edited = null;
  }

  choose(node) {
    this.conversation.choose(node);
    this.turns.draw();
  }

  /** Begin a new conversation; the last one is in the history. */
  clear() {
    this.running?.abort();
    this.conversation = new Conversation();
    this.leaveEdit();
    this.heads?.close();
    this.turns.draw();
    this.showError(null);
    this.setText("usage", "\u00a0");
    const url = new URL(location.href);
    for (const name of ["chat", "run"]) url.searchParams.delete(name);
    history.replaceState(null, "", url);
    this.part("message").focus();
  }

  /** Show a run: its messages and the answer, as a conversation of its own. */
  async showStored({ request, answer }) {
    const text = answer?.choices?.[0]?.message?.content;
    if (typeof text !== "string" || !request?.messages || this.conversation.nodes.length) return;
    for (const { role, content } of [...request.messages, { role: "assistant", content: text }]) {
      if (role === "user") this.conversation.add(role, { content });
      else if (role === "system") this.part("system").value = content;
      else this.conversation.add(role, { contents: [content], labels: [request.model] });
    }
    this.turns.draw();
  }

  /** Show the conversation of the page's address. */
  async openChat() {
    const id = new URL(location.href).searchParams.get("chat");
    const stored = id && (await load(id).catch(() => null));
    if (!stored || this.conversation.nodes.length) return;
    this.conversation = new Conversation(stored);
    this.turns.draw();
  }

  get history() {
    return this.querySelector("fovea-chat-history");
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

  setBusy(on) {
    this.isWriting = on;
    super.setBusy(on);
    if (on) this.show(false, "progress"); // the turn itself says that it waits
    this.show(!on, "send");
    if (!on) this.part("message").focus();
  }
}

customElements.define("fovea-chat", Chat);
