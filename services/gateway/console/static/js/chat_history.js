/** The drawer of earlier conversations: a list with a search, kept in this browser; each can be opened and deleted. */

import { createButton, createNode, CustomElement } from "./custom_element.js";
import { createId } from "./chat_tree.js";
import { records } from "./database.js";

const MOST = 200;
const store = records("chats");

export const load = (id) => store.get(id);

class ChatHistory extends CustomElement {
  connectedCallback() {
    this.on("input", "history-query", () => this.draw());
    this.part("history-drawer").addEventListener("toggle", () => this.refresh());
  }

  /**
   * Store a conversation; one that another tab has gone on with meanwhile becomes a conversation of its own. A browser
   * that keeps nothing (a private window) only has no history.
   */
  async keep(conversation, model) {
    const stored = await store.get(conversation.id).catch(() => null);
    if (stored && stored.time !== conversation.time) conversation.id = createId();
    conversation.time = new Date().toISOString();
    await store.put({ ...conversation, model }).catch(() => {});
    await this.refresh();
  }

  async refresh() {
    if (!this.part("history-drawer").open) return;
    this.chats = (await store.list().catch(() => [])).sort((a, b) => b.time.localeCompare(a.time));
    await Promise.all(this.chats.splice(MOST).map(({ id }) => store.remove(id)));
    this.draw();
  }

  /** The conversations that have all words of the search in any of their turns. */
  draw() {
    const words = this.part("history-query").value.toLowerCase().split(/\s+/).filter(Boolean);
    const textOf = (chat) => chat.nodes.flatMap(({ content, contents }) => [content, ...(contents ?? [])]).join(" ").toLowerCase();
    const found = (this.chats ?? []).filter((chat) => words.every((word) => textOf(chat).includes(word)));
    this.part("history-list").replaceChildren(...found.map((chat) => this.createEntry(chat)));
    this.show(found.length === 0, "history-empty");
  }

  createEntry(chat) {
    const link = createNode("a", "", chat.title || "Untitled");
    link.href = `/console/chat?${new URLSearchParams({ model: chat.model, chat: chat.id })}`;
    const gone = createButton("Delete", async () => {
      await store.remove(chat.id);
      await this.refresh();
    }, "quiet small");
    gone.setAttribute("aria-label", `Delete ${chat.title}`);
    return createNode("li", "history-entry", link, gone);
  }
}

customElements.define("fovea-chat-history", ChatHistory);
