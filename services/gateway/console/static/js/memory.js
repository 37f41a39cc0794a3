/**
 * What a model keeps between requests, beside its chat: a session that remembers, or a document that is read once.
 * Knows the two routes and how citations and surprise are drawn; the conversation is `chat.js`.
 */

import { call } from "./gateway.js";
import { chosenModel } from "./form.js";
import { Part } from "./element.js";

const LEVELS = 4;

export class Memory extends Part {
  connectedCallback() {
    this.on("click", "session-open", () => this.trying(() => this.open()));
    this.on("click", "session-back", () => this.trying(() => this.back()));
    this.on("click", "session-forget", () => this.trying(() => this.forget()));
    this.on("click", "document-read", () => this.trying(() => this.read()));
    this.on("click", "document-drop", () => this.trying(() => this.drop()));
    const named = new URL(location.href).searchParams.get("session");
    if (named && this.part("session-open")) this.trying(() => this.resume(named));
  }

  get chat() {
    return this.closest("fovea-chat");
  }

  /** What a request says about memory. */
  get request() {
    if (this.session) return { session_id: this.session.id };
    return this.document ? { document_id: this.document.id } : {};
  }

  /** Messages to send: a session remembers what was said, so only what is new. */
  unsaid(messages) {
    return this.session ? messages.slice(-1) : messages;
  }

  async trying(deed) {
    this.chat.fault(null);
    try {
      await deed();
    } catch (problem) {
      this.chat.fault(problem);
    }
  }

  async open() {
    const json = { model: chosenModel(this.chat) };
    this.drawn(await (await call("/v1/sessions", { method: "POST", json })).json());
  }

  /** Go on with a session that the address names. */
  async resume(id) {
    const path = `/v1/sessions/${encodeURIComponent(id)}`;
    const session = await (await call(path)).json();
    if (session.model !== chosenModel(this.chat)) return;
    this.drawn(session);
    if (session.version) this.learnt(await (await call(`${path}/surprise`)).json());
  }

  async back() {
    const version = this.session.version - 1;
    const path = `/v1/sessions/${this.session.id}/rollback`;
    this.drawn(await (await call(path, { method: "POST", json: { version } })).json());
    this.show(false, "surprise");
  }

  async forget() {
    await call(`/v1/sessions/${this.session.id}`, { method: "DELETE" });
    this.drawn(null);
  }

  /** Say what the session holds, and offer what can be done with it. */
  drawn(session) {
    this.session = session;
    this.addressed();
    this.show(!session, "session-open");
    this.show(Boolean(session), "session-forget");
    this.show(session?.versions.length > 1, "session-back");
    if (!session) this.show(false, "surprise");
    const held = session && `${session.tokens.toLocaleString("en")} tokens read · ${session.state_bytes.toLocaleString("en")} bytes remembered · version ${session.version}`;
    this.say("session-state", held || "Nothing is remembered between requests.");
    this.say("session-id", session?.id);
    this.show(Boolean(session), "session-named");
  }

  /** The address names the session, so that a page opened again goes on with it. */
  addressed() {
    const url = new URL(location.href);
    if (this.session) {
      url.searchParams.set("model", this.session.model);
      url.searchParams.set("session", this.session.id);
    } else url.searchParams.delete("session");
    history.replaceState(null, "", url);
  }

  async read() {
    const text = this.part("document-text").value.trim();
    if (!text) return;
    const json = { model: chosenModel(this.chat), text };
    const told = await (await call("/v1/documents", { method: "POST", json })).json();
    this.document = { id: told.id, text };
    const before = told.cached_tokens ? ` · ${told.cached_tokens.toLocaleString("en")} had been read before` : "";
    this.say("document-state", `${told.tokens.toLocaleString("en")} tokens in ${told.blocks.toLocaleString("en")} blocks${before}`);
    this.source(null);
  }

  async drop() {
    await call(`/v1/documents/${this.document.id}`, { method: "DELETE" });
    this.document = null;
    this.say("document-state", "");
    this.source(null);
  }

  /** Show the document in place of its field, with one stretch of it marked. */
  source(cited) {
    const { document: held } = this;
    this.show(Boolean(held), "document-source", "document-drop");
    this.show(!held, "document-text", "document-read");
    if (!held) return;
    const [start, end] = cited ? [cited.char_start, cited.char_end] : [0, 0];
    // Offsets count characters; JavaScript's strings count UTF-16 units.
    const letters = [...held.text];
    const text = (from, to) => letters.slice(from, to).join("");
    const mark = document.createElement("mark");
    mark.textContent = text(start, end);
    this.part("document-source").replaceChildren(text(0, start), mark, text(end));
    if (cited) mark.scrollIntoView({ block: "nearest" });
  }

  /** Draw what came with an answer: its citations into the turn, and the memory's size and surprise. */
  async told(longctx, turn) {
    this.cited(longctx.citations ?? [], turn);
    if (!this.session || longctx.state_version == null) return;
    const path = `/v1/sessions/${this.session.id}`;
    const [session, trace] = await Promise.all([call(path), call(`${path}/surprise`)]);
    this.drawn(await session.json());
    this.learnt(await trace.json());
  }

  cited(citations, turn) {
    const list = turn.querySelector('[data-part="citations"]');
    list.hidden = !citations.length;
    list.replaceChildren(...citations.map((one) => this.citation(one)));
  }

  citation(one) {
    const row = this.copyOf("citation");
    const button = row.querySelector("button");
    button.textContent = `block ${one.block} · ${Math.round(100 * one.weight)} %`;
    row.querySelector("q").textContent = one.text;
    const here = this.document && one.document === this.document.id;
    button.disabled = !here;
    if (here) button.addEventListener("click", () => this.source(one));
    return row;
  }

  /** Tokens of the last request, the more surprising the stronger. */
  learnt(trace) {
    const losses = trace.tokens.map((token) => token.loss);
    const [least, most] = [Math.min(...losses), Math.max(...losses)];
    const level = (loss) => (most > least ? Math.round((LEVELS * (loss - least)) / (most - least)) : LEVELS);
    this.show(trace.tokens.length > 0, "surprise");
    this.say("surprise-mean", trace.mean === null ? "" : `mean ${trace.mean.toFixed(2)}, strongest ${most.toFixed(2)}`);
    this.part("surprise-tokens").replaceChildren(
      ...trace.tokens.map((token) => {
        const drawn = document.createElement("span");
        drawn.className = `learnt learnt-${level(token.loss)}`;
        drawn.textContent = token.text.trim() || "␣";
        drawn.title = `surprise ${token.loss.toFixed(3)}, learnt at ${token.rate.toFixed(4)}, ${(100 * token.forgotten).toFixed(1)} % forgotten`;
        return drawn;
      }),
    );
  }
}
