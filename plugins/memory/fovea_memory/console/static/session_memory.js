/**
 * Session and document panel of the chat page: a session's memory, or a document that the model reads once.
 * Shows citations and surprise; the conversation itself is `chat.js`.
 */

import { call } from "../../js/gateway.js";
import { selectedModel } from "../../js/form.js";
import { CustomElement } from "../../js/custom_element.js";

const LEVELS = 4;

/** Delete what may have expired by now. */
const drop = (path) => call(path, { method: "DELETE" }).catch((problem) => problem.status === 404 || Promise.reject(problem));

export class SessionMemory extends CustomElement {
  connectedCallback() {
    this.on("click", "session-open", () => this.attempt(() => this.openSession()));
    this.on("click", "session-back", () => this.attempt(() => this.rollBack()));
    this.on("click", "session-forget", () => this.attempt(() => this.deleteSession()));
    this.on("click", "document-read", () => this.attempt(() => this.storeDocument()));
    this.on("click", "document-drop", () => this.attempt(() => this.deleteDocument()));
    const named = new URL(location.href).searchParams.get("session");
    if (named && this.part("session-open")) this.attempt(() => this.resume(named));
  }

  get chat() {
    return this.closest("fovea-chat");
  }

  /** The session's or document's field of a request. */
  get requestFields() {
    if (this.session) return { session_id: this.session.id };
    return this.document ? { document_id: this.document.id } : {};
  }

  /** Messages to send: a session has the earlier ones in its memory, so only the new one. */
  newMessages(messages) {
    return this.session ? messages.slice(-1) : messages;
  }

  /** Do one thing at a time: a second click meanwhile would open another session. */
  attempt(action) {
    this.chat.showError(null);
    this.acting ??= action().catch((problem) => this.chat.showError(problem)).finally(() => (this.acting = null));
  }

  async openSession() {
    const json = { model: selectedModel(this.chat) };
    this.showSession(await (await call("/v1/sessions", { method: "POST", json })).json());
  }

  /** Continue the session in the page's address. */
  async resume(id) {
    const path = `/v1/sessions/${encodeURIComponent(id)}`;
    const session = await (await call(path)).json();
    if (session.model !== selectedModel(this.chat)) return;
    this.showSession(session);
    if (session.version) this.showSurprise(await (await call(`${path}/surprise`)).json());
  }

  async rollBack() {
    const version = this.session.version - 1;
    const path = `/v1/sessions/${this.session.id}/rollback`;
    this.showSession(await (await call(path, { method: "POST", json: { version } })).json());
    this.show(false, "surprise");
  }

  async deleteSession() {
    await drop(`/v1/sessions/${this.session.id}`);
    this.showSession(null);
  }

  /** Show the state of the session and the buttons for it. */
  showSession(session) {
    this.session = session;
    this.updateUrl();
    this.show(!session, "session-open");
    this.show(Boolean(session), "session-forget");
    this.show(session?.versions.length > 1, "session-back");
    if (!session) this.show(false, "surprise");
    const state = session && `${session.tokens.toLocaleString("en")} tokens read · ${session.state_bytes.toLocaleString("en")} bytes of memory · version ${session.version}`;
    this.setText("session-state", state || "The model keeps no memory between requests.");
    this.setText("session-id", session?.id);
    this.show(Boolean(session), "session-named");
  }

  /** Put the session into the address, so that a reloaded page continues it. */
  updateUrl() {
    const url = new URL(location.href);
    if (this.session) {
      url.searchParams.set("model", this.session.model);
      url.searchParams.set("session", this.session.id);
    } else url.searchParams.delete("session");
    history.replaceState(null, "", url);
  }

  async storeDocument() {
    const text = this.part("document-text").value.trim();
    if (!text) return;
    const json = { model: selectedModel(this.chat), text };
    const stored = await (await call("/v1/documents", { method: "POST", json })).json();
    this.document = { id: stored.id, text };
    const before = stored.cached_tokens ? ` · ${stored.cached_tokens.toLocaleString("en")} were cached` : "";
    this.setText("document-state", `${stored.tokens.toLocaleString("en")} tokens in ${stored.blocks.toLocaleString("en")} blocks${before}`);
    this.showDocument(null);
  }

  async deleteDocument() {
    await drop(`/v1/documents/${this.document.id}`);
    this.document = null;
    this.setText("document-state", "");
    this.showDocument(null);
  }

  /** Show the document in place of its input, with one passage marked. */
  showDocument(citation) {
    const { document: stored } = this;
    this.show(Boolean(stored), "document-source", "document-drop");
    this.show(!stored, "document-text", "document-read");
    if (!stored) return;
    const [start, end] = citation ? [citation.char_start, citation.char_end] : [0, 0];
    // Offsets count characters; JavaScript's strings count UTF-16 units.
    const letters = [...stored.text];
    const text = (from, to) => letters.slice(from, to).join("");
    const mark = document.createElement("mark");
    mark.textContent = text(start, end);
    this.part("document-source").replaceChildren(text(0, start), mark, text(end));
    if (citation) mark.scrollIntoView({ block: "nearest" });
  }

  /** Show what came with an answer: its citations, and the memory's size and surprise. */
  async showLongctx(longctx, turn) {
    this.showCitations(longctx.citations ?? [], turn);
    if (!this.session || longctx.state_version == null) return;
    const path = `/v1/sessions/${this.session.id}`;
    const [session, trace] = await Promise.all([call(path), call(`${path}/surprise`)]);
    this.showSession(await session.json());
    this.showSurprise(await trace.json());
  }

  showCitations(citations, turn) {
    const list = turn.querySelector('[data-part="citations"]');
    list.hidden = !citations.length;
    list.replaceChildren(...citations.map((one) => this.createCitation(one)));
  }

  createCitation(one) {
    const row = this.cloneTemplate("citation");
    const button = row.querySelector("button");
    button.textContent = `block ${one.block} · ${Math.round(100 * one.weight)} %`;
    row.querySelector("q").textContent = one.text;
    const here = this.document && one.document === this.document.id;
    button.disabled = !here;
    if (here) button.addEventListener("click", () => this.showDocument(one));
    return row;
  }

  /** Show the tokens of the last request, the more surprising the stronger. */
  showSurprise(trace) {
    const losses = trace.tokens.map((token) => token.loss);
    const [least, most] = [Math.min(...losses), Math.max(...losses)];
    const level = (loss) => (most > least ? Math.round((LEVELS * (loss - least)) / (most - least)) : LEVELS);
    this.show(trace.tokens.length > 0, "surprise");
    this.setText("surprise-mean", trace.mean === null ? "" : `mean ${trace.mean.toFixed(2)}, strongest ${most.toFixed(2)}`);
    this.part("surprise-tokens").replaceChildren(
      ...trace.tokens.map((token) => {
        const span = document.createElement("span");
        span.className = `learnt learnt-${level(token.loss)}`;
        span.textContent = token.text.trim() || "␣";
        span.title = `surprise ${token.loss.toFixed(3)}, learning rate ${token.rate.toFixed(4)}, ${(100 * token.forgotten).toFixed(1)} % forgotten`;
        return span;
      }),
    );
  }
}
