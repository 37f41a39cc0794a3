/** Turns of a chat as nodes: questions, answers as markdown, their buttons, branches, waiting and cost. */

import { createNode, partOf } from "./custom_element.js";
import { render } from "./markdown.js";
import { formatSeconds } from "./eta.js";
import { copyText } from "./save.js";

const DRAW_MS = 80;
const WAIT_MS = 1000;
const COPIED_MS = 3000;

export class ChatTurns {
  constructor(chat) {
    this.chat = chat;
    this.part = chat.part("turns");
    this.part.addEventListener("click", ({ target }) => this.act(target.closest("[data-turn]")));
  }

  /** Draw all turns of the present branch; turns that answers were just written into stay as they are. */
  draw(answers = []) {
    const path = this.chat.conversation.path();
    const kept = new Map(answers.map(({ turn, place }) => [place, turn]));
    const nodes = path.map((node) => {
      const old = [...kept.keys()].find((place) => place.dataset.node === String(node.id));
      return old ?? this.createTurn(node);
    });
    for (const old of this.part.querySelectorAll(":scope > .turn, :scope > .turn-pair")) if (!nodes.includes(old)) old.remove();
    this.part.append(...nodes);
    path.forEach((node, at) => this.updateTools(node, nodes[at]));
    this.chat.show(path.length === 0, "nothing");
    this.scrollToEnd(true);
  }

  createTurn(node) {
    if (node.role === "user") {
      const turn = this.createOne("You", node);
      turn.classList.add("turn-mine");
      partOf(turn, "text").textContent = node.content;
      return turn;
    }
    const turns = node.contents.map((text, at) => {
      const turn = this.createOne(node.labels[at] ?? "", node);
      partOf(turn, "text").replaceChildren(...render(text ?? ""));
      return turn;
    });
    if (turns.length === 1) return turns[0];
    return this.wrapPair(turns, node);
  }

  createOne(who, node) {
    const turn = this.chat.cloneTemplate("turn");
    turn.dataset.node = node.id;
    partOf(turn, "who").textContent = who;
    return turn;
  }

  wrapPair(turns, node) {
    const pair = this.chat.cloneTemplate("answers");
    pair.dataset.node = node.id;
    pair.append(...turns);
    return pair;
  }

  /** Begin the answers of a turn; with text already there, they go on. */
  begin(node, variants) {
    const turns = variants.map(({ label }) => this.createOne(label, node));
    const place = turns.length === 1 ? turns[0] : this.wrapPair(turns, node);
    this.part.querySelector(`:scope > [data-node="${node.id}"]`)?.remove();
    this.part.append(place);
    this.scrollToEnd(true);
    return variants.map(({ longctx, ...variant }, column) => {
      const turn = turns[column];
      turn.classList.add("turn-writing");
      turn.setAttribute("aria-busy", "true");
      const text = node.contents[column] ?? "";
      const answer = { ...variant, settings: longctx, turn, place, column, text, output: partOf(turn, "text"), scores: [], started: performance.now() };
      if (text) this.write(answer);
      return answer;
    });
  }

  /** Draw the text of an answer, at most every so many milliseconds. */
  write(answer) {
    partOf(answer.turn, "wait").textContent = "";
    answer.drawing ??= setTimeout(() => {
      answer.drawing = null;
      answer.output.replaceChildren(...render(answer.text));
      this.scrollToEnd();
    }, DRAW_MS);
  }

  /** Say how long the first token has been waited for, and what else the service has to do. */
  wait(answer, countOthers) {
    const began = Date.now();
    let others = null;
    countOthers().then((count) => (others = count), () => {});
    return setInterval(() => {
      if (answer.first) return;
      const ahead = others ? ` · ${others} other request${others === 1 ? "" : "s"} at this service` : "";
      partOf(answer.turn, "wait").textContent = `Waiting for the first token, ${formatSeconds((Date.now() - began) / 1000)}${ahead}`;
    }, WAIT_MS);
  }

  finish(answer) {
    clearTimeout(answer.drawing);
    answer.turn.classList.remove("turn-writing");
    answer.turn.setAttribute("aria-busy", "false");
    partOf(answer.turn, "wait").textContent = "";
    answer.output.replaceChildren(...render(answer.text));
    this.showCost(answer);
  }

  /** The memory of keys and values beside that of dense attention. */
  showCost({ usage, turn, place }) {
    const longctx = usage?.longctx;
    if (!longctx || (longctx.method === "dense" && place === turn)) return;
    const megabytes = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
    const meter = createNode("meter", "");
    Object.assign(meter, { max: 1, value: longctx.kv_ratio });
    const words = `${longctx.method}: ${megabytes(longctx.kv_bytes)} of ${megabytes(longctx.kv_bytes_dense)} KV cache (${Math.round(100 * longctx.kv_ratio)} %)`;
    meter.setAttribute("aria-label", words);
    partOf(turn, "cost").replaceChildren(meter, words);
  }

  updateTools(node, place) {
    const { conversation } = this.chat;
    const siblings = conversation.siblings(node);
    for (const turn of place.matches(".turn") ? [place] : place.children) {
      turn.classList.toggle("turn-cut", Boolean(node.cut));
      partOf(turn, "cut").textContent = node.cut ? `(${node.cut})` : "";
      for (const button of turn.querySelectorAll("[data-turn]")) {
        const only = { edit: "user", retry: "assistant", continue: "assistant" }[button.dataset.turn];
        button.hidden = (only && only !== node.role) || (button.dataset.turn === "continue" && !node.cut);
      }
      partOf(turn, "branches").hidden = siblings.length < 2;
      partOf(turn, "branch").textContent = `${siblings.indexOf(node) + 1} of ${siblings.length}`;
    }
  }

  async act(button) {
    if (!button || this.chat.isWriting) return;
    const { conversation } = this.chat;
    const turn = button.closest(".turn");
    const node = conversation.find(Number(turn.dataset.node));
    const siblings = conversation.siblings(node);
    const step = { previous: -1, next: 1 }[button.dataset.turn];
    if (step) this.chat.choose(siblings[(siblings.indexOf(node) + step + siblings.length) % siblings.length]);
    else if (button.dataset.turn === "copy") await this.chat.attempt(() => this.copy(node, turn));
    else if (button.dataset.turn === "edit") this.chat.edit(node);
    else if (button.dataset.turn === "retry") this.chat.retry(node);
    else this.chat.answer(node);
  }

  async copy(node, turn) {
    const column = [...turn.parentElement.children].indexOf(turn);
    await copyText(node.content ?? node.contents[turn.parentElement === this.part ? 0 : column]);
    const note = partOf(turn, "wait");
    note.textContent = "Copied.";
    setTimeout(() => note.textContent === "Copied." && (note.textContent = ""), COPIED_MS);
  }

  /** Scroll to the end, unless the reader has scrolled away from it. */
  scrollToEnd(always = false) {
    const { part } = this;
    const isNear = part.scrollHeight - part.scrollTop - part.clientHeight < 80;
    if (always || isNear) part.scrollTop = part.scrollHeight;
  }
}
