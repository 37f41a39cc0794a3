/**
 * Text files of a form: chosen by the reader (gzipped ones are unpacked here), or filled in as an example.
 * A control is an `<input type=file data-text=NAME>`; `data-text-note=NAME` beside it says what it has.
 */

const examples = new WeakMap();

/** Files that were chosen in any form of the page, by what they are, and those of the chosen collection. */
const [chosen, collected] = [new Map(), new Map()];

/** A collection that is still under way: forms wait for it. */
let arriving = Promise.resolve();

export const awaitCollection = (collection) => (arriving = collection.catch(() => {}));

/** Texts of a collection. */
export const COLLECTED = ["topics", "passages", "runs", "labels", "judge"];

const KINDS = { topics: "topics", passages: "passages", runs: "runs", reference: "labels", labels: "labels", human: "labels", judge: "judge" };

/** The file of the collection, or of another form, that a control without one uses. */
function sharedFile(input) {
  const { text: name, needed } = input.dataset;
  const isShared = needed || name === "topics" || name === "passages";
  return collected.get(KINDS[name]) ?? (isShared ? chosen.get(KINDS[name]) : undefined);
}

/** Use the texts of a collection, by kind, in every form of the page, in place of examples unless they stay; null uses none. */
export function useCollection(name, texts, keepsExamples = false) {
  collected.clear();
  for (const kind of COLLECTED) if (texts?.[kind]) collected.set(kind, new File([texts[kind]], kind));
  for (const input of document.querySelectorAll("[data-text]")) {
    if (!keepsExamples) examples.delete(input);
    if (!input.files.length && !examples.has(input)) setNote(input.form, input, collected.has(KINDS[input.dataset.text]) ? `From ${name}. ` : describeShared(input));
  }
}

document.addEventListener("change", ({ target }) => {
  if (!target.files?.length || !KINDS[target.dataset.text]) return;
  chosen.set(KINDS[target.dataset.text], target.files[0]);
  for (const input of document.querySelectorAll("[data-text]")) {
    if (!input.files.length && !examples.has(input) && !collected.has(KINDS[input.dataset.text])) setNote(input.form, input, describeShared(input));
  }
});

/** What a control without a file of its own or of a collection uses, in words. */
const describeShared = (input) => (sharedFile(input) ? `Uses ${sharedFile(input).name}. ` : "");

const textInputs = (form) => [...form.querySelectorAll("[data-text]")];

/** Fill the controls of a form with texts, by name; a file that is chosen later replaces them. */
export function fillTexts(form, texts, origin) {
  for (const input of textInputs(form)) {
    const text = texts[input.dataset.text];
    if (text === undefined) continue;
    input.value = "";
    examples.set(input, text);
    setNote(form, input, `From ${origin}: ${listLines(text).length} lines. `);
  }
}

/** Read the texts of a form by name. Throws an error for `showError` when one is missing or can't be unpacked. */
export async function readTexts(form) {
  const result = {};
  await arriving;
  for (const input of textInputs(form)) {
    const file = input.files[0] ?? (examples.has(input) ? undefined : sharedFile(input));
    const text = file ? await readFile(file) : examples.get(input);
    if (text === undefined && input.dataset.needed) throw createMissingError(input);
    if (text !== undefined) result[input.dataset.text] = text;
    if (input.files.length) setNote(form, input, "");
  }
  return result;
}

/** The lines of a text that are not empty, whatever ends them. */
const listLines = (text) => (text ?? "").split(/\r?\n/).filter((line) => line.trim());

/** Texts by id, from `id<TAB>text` lines or JSON lines with `id` and `text`. */
export function indexById(text) {
  return new Map(listLines(text).map((line) => (line.startsWith("{") ? jsonLine(line) : line.split("\t"))));
}

function jsonLine(line) {
  let row;
  try {
    row = JSON.parse(line);
  } catch {
    throw Object.assign(new Error(`“${line.slice(0, 40)}” is not a JSON line.`), { title: "Bad input", hint: "Write each topic or passage in a line of its own." });
  }
  return [String(row.id ?? row.qid ?? row.docid), row.text ?? row.query ?? row.passage];
}

/** The text of a file, unpacked if it is gzipped. Throws an error for `showError` where it is no text. */
export async function readFile(file) {
  const isPacked = file.name.endsWith(".gz");
  const source = isPacked ? new Response(file.stream().pipeThrough(new DecompressionStream("gzip"))) : file;
  let form = isPacked ? "a gzip file" : "a file that can be read";
  try {
    const bytes = await source.arrayBuffer();
    form = "text in UTF-8";
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw Object.assign(new Error(`${file.name} is not ${form}.`), { title: "Bad input" });
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
