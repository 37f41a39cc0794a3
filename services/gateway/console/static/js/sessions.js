/**
 * The list of sessions, a page at a time: what each remembers, and what can be done with it. Deleting asks once more.
 * Knows the route and its rows; talking with a session is `chat.js` and `memory.js`.
 */

import { call } from "./gateway.js";
import { Part } from "./element.js";
import { save } from "./save.js";

const PAGE = 50;
const UNITS = [["day", 86_400], ["hour", 3600], ["minute", 60]];

export class Sessions extends Part {
  connectedCallback() {
    this.on("click", "fork", (_, button) => this.act(button, (row) => this.fork(row)));
    this.on("click", "export", (_, button) => this.act(button, (row) => this.export(row)));
    this.on("click", "delete", (_, button) => (button.dataset.sure ? this.act(button, (row) => this.delete(row)) : sure(button, true)));
    this.on("focusout", "delete", (_, button) => sure(button, false));
    this.on("click", "more", (_, button) => this.trying(button, () => this.look(this.part("list").lastElementChild?.dataset.session)));
    this.trying(null, () => this.look());
  }

  /** The next page, behind a session or from the newest on. */
  async look(after) {
    const asked = new URLSearchParams({ limit: PAGE, ...(after && { after }) });
    const found = await (await call(`/v1/sessions?${asked}`)).json();
    this.part("list").append(...found.data.map((session) => this.row(session)));
    this.show(found.has_more, "more");
    this.count();
  }

  row(session) {
    const row = this.copyOf("session");
    const put = (name, text) => within(row, name).append(text);
    row.dataset.session = session.id;
    row.dataset.version = session.version;
    put("id", session.id);
    put("model", session.model);
    within(row, "model").href = `/console/models/${session.model}`;
    put("tokens", session.tokens.toLocaleString("en"));
    put("memory", size(session.state_bytes));
    within(row, "memory").title = `${session.state_bytes.toLocaleString("en")} bytes`;
    put("version", session.version);
    const earlier = session.versions.filter((version) => version < session.version);
    put("versions", earlier.length ? `also kept: ${earlier.join(", ")}` : "");
    const used = new Date(1000 * session.updated);
    put("updated", ago(used));
    within(row, "updated").dateTime = used.toISOString();
    within(row, "updated").title = used.toLocaleString([], { dateStyle: "medium", timeStyle: "medium" });
    within(row, "continue").href = `/console/chat?${new URLSearchParams({ model: session.model, session: session.id })}`;
    for (const name of ["continue", "fork", "export", "delete"]) within(row, name).setAttribute("aria-describedby", `id-${session.id}`);
    within(row, "id").id = `id-${session.id}`;
    return row;
  }

  async fork({ dataset }) {
    const made = await (await call(`/v1/sessions/${dataset.session}/fork`, { method: "POST" })).json();
    const row = this.row(made);
    this.part("list").prepend(row);
    this.count();
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
    this.count();
    next?.focus();
  }

  count() {
    const shown = this.part("list").childElementCount;
    const more = !this.part("more").hidden;
    this.show(!shown && !more, "nothing");
    const some = `${shown}${more ? " and more" : ""} ${shown === 1 ? "session" : "sessions"}`;
    this.say("count", shown ? `${some}. Unused ones are forgotten after a while.` : "");
  }

  act(button, deed) {
    return this.trying(button, () => deed(button.closest("[data-session]")));
  }

  async trying(button, deed) {
    this.fault(null);
    if (button) button.disabled = true;
    try {
      await deed();
    } catch (problem) {
      this.fault(problem);
    } finally {
      if (button) button.disabled = false;
    }
  }
}

const within = (row, name) => row.querySelector(`[data-part="${name}"]`);

/** A button that destroys says so before it does. */
function sure(button, on) {
  if (on) button.dataset.sure = "yes";
  else delete button.dataset.sure;
  button.classList.toggle("grave", on);
  within(button, "delete-words").textContent = on ? "Delete for good" : "Delete";
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
