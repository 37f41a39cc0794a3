/**
 * Sessions page: the list, a page at a time, with the actions for each session. Deleting asks for confirmation.
 * Chatting with a session is `chat.js` and `session_memory.js`.
 */

import { call } from "../../js/gateway.js";
import { CustomElement } from "../../js/custom_element.js";
import { save } from "../../js/save.js";
import { SessionMemory } from "./session_memory.js";

const PAGE = 50;
const UNITS = [["day", 86_400], ["hour", 3600], ["minute", 60]];

class Sessions extends CustomElement {
  connectedCallback() {
    this.on("click", "fork", (_, button) => this.runAction(button, (row) => this.fork(row)));
    this.on("click", "export", (_, button) => this.runAction(button, (row) => this.export(row)));
    this.on("click", "delete", ({ detail }, button) => detail < 2 && (button.dataset.confirming ? this.runAction(button, (row) => this.delete(row)) : setConfirming(button, true)));
    this.on("focusout", "delete", (_, button) => setConfirming(button, false));
    this.on("click", "more", (_, button) => this.attempt(button, () => this.fetchNext(this.part("list").lastElementChild?.dataset.session)));
    this.attempt(null, () => this.fetchNext());
  }

  /** Fetch the next page of the list, after a session or from the newest on. */
  async fetchNext(after) {
    const query = new URLSearchParams({ limit: PAGE, ...(after && { after }) });
    const found = await (await call(`/v1/sessions?${query}`)).json();
    this.part("list").append(...found.data.map((session) => this.createRow(session)));
    this.show(found.has_more, "more");
    this.showCount();
  }

  createRow(session) {
    const row = this.cloneTemplate("session");
    const put = (name, text) => partOf(row, name).append(text);
    row.dataset.session = session.id;
    row.dataset.version = session.version;
    put("id", session.id);
    put("model", session.model);
    partOf(row, "model").href = `/console/models/${session.model}`;
    put("tokens", session.tokens.toLocaleString("en"));
    put("memory", size(session.state_bytes));
    partOf(row, "memory").title = `${session.state_bytes.toLocaleString("en")} bytes`;
    put("version", session.version);
    const earlier = session.versions.filter((version) => version < session.version);
    put("versions", earlier.length ? `also kept: ${earlier.join(", ")}` : "");
    const used = new Date(1000 * session.updated);
    put("updated", ago(used));
    partOf(row, "updated").dateTime = used.toISOString();
    partOf(row, "updated").title = used.toLocaleString([], { dateStyle: "medium", timeStyle: "medium" });
    partOf(row, "continue").href = `/console/chat?${new URLSearchParams({ model: session.model, session: session.id })}`;
    for (const name of ["continue", "fork", "export", "delete"]) partOf(row, name).setAttribute("aria-describedby", `id-${session.id}`);
    partOf(row, "id").id = `id-${session.id}`;
    return row;
  }

  async fork({ dataset }) {
    const made = await (await call(`/v1/sessions/${dataset.session}/fork`, { method: "POST" })).json();
    const row = this.createRow(made);
    this.part("list").prepend(row);
    this.showCount();
    row.focus();
    row.scrollIntoView({ block: "nearest" });
  }

  async export({ dataset }) {
    const state = await (await call(`/v1/sessions/${dataset.session}/export`)).blob();
    save(state, `${dataset.session}-v${dataset.version}.state`);
  }

  async delete(row) {
    await call(`/v1/sessions/${row.dataset.session}`, { method: "DELETE" });
    const next = row.nextElementSibling ?? row.previousElementSibling;
    row.remove();
    this.showCount();
    next?.focus();
  }

  showCount() {
    const shown = this.part("list").childElementCount;
    const more = !this.part("more").hidden;
    this.show(!shown && !more, "nothing");
    const some = `${shown}${more ? " and more" : ""} ${shown === 1 ? "session" : "sessions"}`;
    this.setText("count", shown ? `${some}. Unused sessions are deleted after a while.` : "");
  }

  runAction(button, action) {
    return this.attempt(button, () => action(button.closest("[data-session]")));
  }

  async attempt(button, action) {
    this.showError(null);
    if (button) button.disabled = true;
    try {
      await action();
    } catch (problem) {
      this.showError(problem);
    } finally {
      if (button) button.disabled = false;
    }
  }
}

const partOf = (row, name) => row.querySelector(`[data-part="${name}"]`);

/** Let a destructive button ask for confirmation. */
function setConfirming(button, on) {
  if (on) button.dataset.confirming = "yes";
  else delete button.dataset.confirming;
  button.classList.toggle("grave", on);
  partOf(button, "delete-words").textContent = on ? "Delete for good" : "Delete";
}

function size(bytes) {
  if (bytes < 1024) return `${bytes} B`;
  return bytes < 1024 ** 2 ? `${(bytes / 1024).toFixed(1)} KiB` : `${(bytes / 1024 ** 2).toFixed(1)} MiB`;
}

function ago(time) {
  const seconds = Math.max(0, (Date.now() - time) / 1000);
  const [unit, length] = UNITS.find(([, least]) => seconds >= least) ?? ["second", 1];
  if (unit === "second") return "just now";
  return new Intl.RelativeTimeFormat("en", { numeric: "always" }).format(-Math.floor(seconds / length), unit);
}

customElements.define("fovea-sessions", Sessions);
customElements.define("fovea-session-memory", SessionMemory);
