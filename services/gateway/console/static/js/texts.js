/**
 * Text files of a form: chosen by the reader (gzipped ones are unpacked here), or filled in as an example.
 * A control is an `<input type=file data-text=NAME>`; `data-text-note=NAME` beside it says what it has.
 */

const examples = new WeakMap();

/** Files that were chosen in any form of the page, by what they are: a collection is chosen once. */
const chosen = new Map();

/** Texts of a collection. */
export const COLLECTED = ["topics", "passages", "runs", "labels", "judge"];

const KINDS = { topics: "topics", passages: "passages", runs: "runs", reference: "labels", labels: "labels", human: "labels", judge: "judge" };

/** The file of another form, or of the collection, that a control without one uses. */
function sharedFile(input) {
  const { text: name, needed } = input.dataset;
  const file = chosen.get(KINDS[name]);
  return needed || name === "topics" || name === "passages" || file?.isCollected ? file : undefined;
}

/** Use the texts of a collection, by kind, in every form of the page; null uses none. */
export function useCollection(name, texts) {
  for (const [kind, file] of chosen) if (file.isCollected) chosen.delete(kind);
  for (const kind of COLLECTED) if (texts?.[kind]) chosen.set(kind, Object.assign(new File([texts[kind]], name), { isCollected: true }));
  for (const input of document.querySelectorAll("[data-text]")) {
    examples.delete(input);
    if (!input.files.length) setNote(input.form, input, sharedFile(input) ? `From ${name}. ` : "");
  }
}

document.addEventListener("change", ({ target }) => {
  if (!target.files?.length || !KINDS[target.dataset.text]) return;
  chosen.set(KINDS[target.dataset.text], target.files[0]);
  for (const input of document.querySelectorAll("[data-text]")) {
    const file = input.files.length || examples.has(input) ? undefined : sharedFile(input);
    if (file) setNote(input.form, input, `Uses ${file.name}. `);
  }
});

const textInputs = (form) => [...form.querySelectorAll("[data-text]")];

/** Fill the controls of a form with texts, by name; a file that is chosen later replaces them. */
export function fillTexts(form, texts, origin) {
  for (const input of textInputs(form)) {
    const text = texts[input.dataset.text];
    if (text === undefined) continue;
    input.value = "";
    examples.set(input, text);
    setNote(form, input, `From ${origin}: ${text.split("\n").length - 1} lines. `);
  }
}

/** Read the texts of a form by name. Throws an error for `showError` when one is missing or can't be unpacked. */
export async function readTexts(form) {
  const result = {};
  for (const input of textInputs(form)) {
    const file = input.files[0] ?? (examples.has(input) ? undefined : sharedFile(input));
    const text = file ? await readFile(file) : examples.get(input);
    if (text === undefined && input.dataset.needed) throw createMissingError(input);
    if (text !== undefined) result[input.dataset.text] = text;
    if (input.files.length) setNote(form, input, "");
  }
  return result;
}

/** Texts by id, from `id<TAB>text` lines or JSON lines with `id` and `text`. */
export function indexById(text) {
  const rows = (text ?? "").split("\n").filter((line) => line.trim());
  return new Map(rows.map((line) => (line.startsWith("{") ? jsonLine(line) : line.split("\t"))));
}

function jsonLine(line) {
  const row = JSON.parse(line);
  return [String(row.id ?? row.qid ?? row.docid), row.text ?? row.query ?? row.passage];
}

/** The text of a file, unpacked if it is gzipped. */
export async function readFile(file) {
  if (!file.name.endsWith(".gz")) return file.text();
  try {
    return await new Response(file.stream().pipeThrough(new DecompressionStream("gzip"))).text();
  } catch {
    throw Object.assign(new Error(`${file.name} is not a gzip file.`), { title: "Bad input" });
  }
}

function createMissingError(input) {
  const label = input.labels[0].textContent.trim();
  const error = new Error(`“${label}” is required.`);
  return Object.assign(error, { title: "A file is missing", hint: "Choose one, or use the mini-collection." });
}

function setNote(form, input, text) {
  form.querySelector(`[data-text-note="${input.dataset.text}"]`).textContent = text;
}
