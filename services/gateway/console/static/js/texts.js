/**
 * Files that go to the gateway as text: chosen by the reader (gzipped ones are unpacked here), or put in as an example.
 * A control is an `<input type=file data-text=NAME>`; what it holds is told in `data-text-note=NAME` beside it.
 */

const examples = new WeakMap();

const inputs = (form) => [...form.querySelectorAll("[data-text]")];

/** Put texts into the controls of a form, by name; a file that is chosen later takes their place. */
export function putIn(form, texts, origin) {
  for (const input of inputs(form)) {
    const text = texts[input.dataset.text];
    if (text === undefined) continue;
    input.value = "";
    examples.set(input, text);
    tell(form, input, `From ${origin}: ${text.split("\n").length - 1} lines. `);
  }
}

/** The texts of a form by name. Throws what a `fault` can show when one is missing or can't be unpacked. */
export async function texts(form) {
  const found = {};
  for (const input of inputs(form)) {
    const text = input.files.length ? await read(input.files[0]) : examples.get(input);
    if (text === undefined && input.dataset.needed) throw missing(input);
    if (text !== undefined) found[input.dataset.text] = text;
    if (input.files.length) tell(form, input, "");
  }
  return found;
}

/** Texts by id, from `id<TAB>text` lines or JSON lines with `id` and `text`. */
export function byId(text) {
  const rows = (text ?? "").split("\n").filter((line) => line.trim());
  return new Map(rows.map((line) => (line.startsWith("{") ? jsonLine(line) : line.split("\t"))));
}

function jsonLine(line) {
  const row = JSON.parse(line);
  return [String(row.id ?? row.qid ?? row.docid), row.text ?? row.query ?? row.passage];
}

async function read(file) {
  if (!file.name.endsWith(".gz")) return file.text();
  try {
    return await new Response(file.stream().pipeThrough(new DecompressionStream("gzip"))).text();
  } catch {
    throw Object.assign(new Error(`${file.name} is not a gzip file.`), { title: "Bad input" });
  }
}

function missing(input) {
  const label = input.labels[0].textContent.trim();
  const error = new Error(`“${label}” is needed.`);
  return Object.assign(error, { title: "A file is missing", hint: "Choose one, or use the mini-collection." });
}

function tell(form, input, text) {
  form.querySelector(`[data-text-note="${input.dataset.text}"]`).textContent = text;
}
