/**
 * Collections of the judge's page: topics, passages, runs and labels under a name, chosen once for all steps. They are
 * files of the tenant (`/v1/files`, purpose `collection`), so that colleagues and other browsers find them.
 */

import { CustomElement } from "./custom_element.js";
import { call, recall, retain } from "./gateway.js";
import { awaitCollection, COLLECTED, indexById, readFile, useCollection } from "./texts.js";

const PURPOSE = "collection";
const MINI = "mini";
const CHOSEN = "fovea-collection";

/** The texts of the chosen collection, or null. */
export let current = null;

class Collections extends CustomElement {
  connectedCallback() {
    this.on("change", "chosen", () => this.attempt(() => this.choose(this.part("chosen").value)));
    this.on("click", "delete", ({ detail }, button) => detail < 2 && this.attempt(() => this.deleteChosen(button)));
    this.on("submit", "form", (event) => {
      event.preventDefault();
      this.saving ??= this.attempt(() => this.save()).finally(() => (this.saving = null));
    });
    this.attempt(() => this.load());
  }

  async load() {
    const { asked } = this;
    const { data } = await (await call(`/v1/files?purpose=${PURPOSE}`)).json();
    const choice = this.part("chosen");
    for (const old of [...choice.options].slice(2)) old.remove(); // to move the first would choose the second
    choice.append(...data.map(({ id, filename, bytes }) => new Option(`${filename} (${formatBytes(bytes)})`, id)));
    const known = recall("localStorage", CHOSEN);
    if (this.asked !== asked) return; // another one was chosen meanwhile
    if ([...choice.options].some(({ value }) => value === known)) await this.choose(known, true);
  }

  /** Choose a collection. The last choice counts, forms wait for it, and one that can't be had is taken back. */
  async choose(id, isRestored = false) {
    this.showError(null);
    this.confirm(false);
    const asked = (this.asked = {});
    const coming = id === MINI ? fetchMini() : id ? call(`/v1/files/${id}/content`).then((answer) => answer.json()) : Promise.resolve(null);
    const used = coming.then((texts) => this.asked === asked && this.use(id, texts, isRestored));
    awaitCollection(used);
    try {
      await used;
    } catch (problem) {
      if (this.asked !== asked) return;
      this.part("chosen").value = this.used ?? "";
      throw problem;
    }
  }

  use(id, texts, isRestored) {
    this.used = id;
    this.part("chosen").value = id;
    retain("localStorage", CHOSEN, id);
    current = texts || null;
    const name = id === MINI ? "the mini-collection" : this.part("chosen").selectedOptions[0].textContent.replace(/ \([^)]*\)$/, "");
    useCollection(name, current, isRestored);
    this.setText("about", current ? describe(current) : "Each step asks for its own files.");
    this.show(Boolean(id) && id !== MINI, "delete");
    document.dispatchEvent(new CustomEvent("fovea-collection", { detail: current }));
  }

  /** Deleting can't be undone: the first click asks, the second does it. */
  async deleteChosen(button) {
    if (!button.dataset.confirming) return this.confirm(true);
    this.confirm(false);
    await call(`/v1/files/${this.used}`, { method: "DELETE" });
    await this.choose("");
    return this.load();
  }

  /** Whether the next click deletes. */
  confirm(isAsked) {
    const button = this.part("delete");
    button.dataset.confirming = isAsked ? "yes" : "";
    button.textContent = isAsked ? "Delete for good" : "Delete";
  }

  /** Store the files of the form under its name. */
  async save() {
    const form = this.part("form");
    const inputs = COLLECTED.map((kind) => [kind, form.elements[kind].files[0]]).filter(([, file]) => file);
    if (!inputs.length) throw Object.assign(new Error("A collection needs one file at least."), { title: "No file" });
    const texts = Object.fromEntries(await Promise.all(inputs.map(async ([kind, file]) => [kind, await readFile(file)])));
    for (const text of [texts.topics, texts.passages]) indexById(text); // tells which line is wrong before it is stored
    const content = new Blob([JSON.stringify(texts)], { type: "application/json" });
    const most = Number(this.dataset.maxBytes);
    if (content.size > most) throw Object.assign(new Error(`The files have ${formatBytes(content.size)}; a collection has ${formatBytes(most)} at most.`), { title: "Too large" });
    const body = new FormData();
    body.append("purpose", PURPOSE);
    body.append("file", content, form.elements.name.value.trim());
    const { id } = await (await call("/v1/files", { method: "POST", body })).json();
    form.reset();
    this.part("new").open = false;
    retain("localStorage", CHOSEN, id);
    await this.load();
  }
}

async function fetchMini() {
  const { topics, passages, runs, qrels, judgements } = await (await call("/v1/judge/collection")).json();
  return { topics, passages, runs, labels: qrels, judge: judgements["query-lift"] ?? Object.values(judgements)[0] };
}

/** What a collection has, in numbers. */
function describe({ topics, passages, runs, labels, judge }) {
  const lines = (text) => text.split("\n").filter((line) => line.trim()).length.toLocaleString("en");
  const parts = [
    topics && `${indexById(topics).size.toLocaleString("en")} topics`, passages && `${lines(passages)} passages`, runs && `${lines(runs)} lines of runs`,
    labels && `${lines(labels)} labels by people`, judge && `${lines(judge)} by a judge`,
  ];
  return `${parts.filter(Boolean).join(", ")}. All steps use them; a file chosen in a step replaces its own there.`;
}

const formatBytes = (bytes) => (bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1000))} kB` : `${(bytes / 1e6).toFixed(1)} MB`);

customElements.define("fovea-collections", Collections);
