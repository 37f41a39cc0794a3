/**
 * Reads and fills forms that the server renders from a JSON Schema. `data-kind` says how a control's text is parsed;
 * an empty control is left out, so that the model's default applies.
 */

const READERS = {
  switch: (control) => control.checked,
  number: (control) => control.valueAsNumber,
  integer: (control) => control.valueAsNumber,
  choice: (control) => JSON.parse(control.value),
  choices: (control) => [...control.querySelectorAll(":checked")].map((box) => JSON.parse(box.value)),
  json: (control) => JSON.parse(control.value),
  list: (control) => control.value.split(",").map((entry) => entry.trim()).filter(Boolean).map(parseEntryAs(control.dataset.items)),
};

const parseEntryAs = (type) => (entry) => (type === "string" ? entry : Number(entry));

const isFile = (control) => control.type === "file";

/** The controls that take files. */
export const fileControls = (form) => [...form.querySelectorAll("[data-kind]")].filter(isFile);

const nameOf = (control) => control.name || control.dataset.name;

/** The nested part of a form whose values are read separately, or null. */
const separatePart = (node) => node.closest("[data-apart]");

/** The selected model of a form. */
export const selectedModel = (form) => form.querySelector('[data-kind="model"]')?.value;

/** Options of the form as JSON values, without pictures. Throws a `SyntaxError` that names the field of broken JSON. */
export function readValues(form) {
  const result = {};
  for (const control of form.querySelectorAll("[data-kind]")) {
    const { kind } = control.dataset;
    if (kind === "model" || isFile(control) || control.value?.trim() === "" || separatePart(control) !== separatePart(form)) continue;
    try {
      result[nameOf(control)] = (READERS[kind] ?? ((c) => c.value))(control);
    } catch (error) {
      throw Object.assign(new SyntaxError(`“${nameOf(control)}” is not JSON: ${error.message}`), { title: "Invalid option", status: 422 });
    }
  }
  return result;
}

/** The files of the form in base64, by field. */
export async function readFiles(form) {
  const result = {};
  for (const control of fileControls(form)) {
    const texts = await Promise.all([...control.files].map(encodeBase64));
    if (texts.length) result[control.name] = control.dataset.kind === "pictures" ? texts : texts[0];
  }
  return result;
}

/** Write values into the controls; returns the values without a control. */
export function fillForm(form, request) {
  const unused = {};
  for (const [name, value] of Object.entries(request)) {
    const control = [...form.querySelectorAll("[data-kind]")].find((candidate) => nameOf(candidate) === name);
    if (!control || isFile(control)) unused[name] = value;
    else if (control.dataset.kind === "switch") control.checked = Boolean(value);
    else if (control.dataset.kind === "choices") for (const box of control.querySelectorAll("input")) box.checked = value.includes(JSON.parse(box.value));
    else if (control.dataset.kind === "choice") control.value = JSON.stringify(value);
    else if (control.dataset.kind === "json") control.value = value === null ? "" : JSON.stringify(value, null, 2);
    else control.value = Array.isArray(value) ? value.join(", ") : (value ?? "");
    control?.dispatchEvent(new Event("input", { bubbles: true }));
  }
  return unused;
}

/** Encode a file in base64. */
export function encodeBase64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

/** Decode base64 (with or without a `data:` prefix) into a Blob. */
export function decodeBase64(text, type) {
  const raw = atob(text.slice(text.indexOf(",") + 1).replace(/\s+/g, ""));
  return new Blob([Uint8Array.from(raw, (c) => c.charCodeAt(0))], { type: type ?? detectPictureType(text) ?? "application/octet-stream" });
}

/** The media type of a picture in base64; null for any other text. */
export function detectPictureType(text) {
  if (typeof text !== "string" || text.length < 60) return null;
  if (text.startsWith("data:image/")) return text.slice(5, text.indexOf(";"));
  const starts = { iVBORw0KGgo: "image/png", "/9j/": "image/jpeg", UklGR: "image/webp" };
  return Object.entries(starts).find(([start]) => text.startsWith(start))?.[1] ?? null;
}
