/**
 * Reads a form that the server drew from a JSON Schema. `data-kind` says how a control's text becomes a value;
 * a control that is left empty is left out, so that the model's own default holds.
 */

const READERS = {
  switch: (control) => control.checked,
  number: (control) => control.valueAsNumber,
  integer: (control) => control.valueAsNumber,
  choice: (control) => JSON.parse(control.value),
  choices: (control) => [...control.querySelectorAll(":checked")].map((box) => JSON.parse(box.value)),
  json: (control) => JSON.parse(control.value),
  list: (control) => control.value.split(",").map((entry) => entry.trim()).filter(Boolean).map(typed(control.dataset.items)),
};

const typed = (type) => (entry) => (type === "string" ? entry : Number(entry));

const isFile = (control) => control.type === "file";

/** The controls that take files. */
export const fileControls = (form) => [...form.querySelectorAll("[data-kind]")].filter(isFile);

const nameOf = (control) => control.name || control.dataset.name;

/** A part of a form whose values are asked for by themselves. */
const apart = (node) => node.closest("[data-apart]");

/** The model that the form has chosen. */
export const chosenModel = (form) => form.querySelector('[data-kind="model"]')?.value;

/** Options of the form as JSON values, without pictures. Throws a `SyntaxError` that names the field of broken JSON. */
export function values(form) {
  const found = {};
  for (const control of form.querySelectorAll("[data-kind]")) {
    const { kind } = control.dataset;
    if (kind === "model" || isFile(control) || control.value?.trim() === "" || apart(control) !== apart(form)) continue;
    try {
      found[nameOf(control)] = (READERS[kind] ?? ((c) => c.value))(control);
    } catch (error) {
      throw Object.assign(new SyntaxError(`“${nameOf(control)}” is not JSON: ${error.message}`), { title: "Invalid option" });
    }
  }
  return found;
}

/** The files of the form in base64, by field. */
export async function files(form) {
  const found = {};
  for (const control of fileControls(form)) {
    const texts = await Promise.all([...control.files].map(base64));
    if (texts.length) found[control.name] = control.dataset.kind === "pictures" ? texts : texts[0];
  }
  return found;
}

/** Write values back into the controls; names without a control are returned. */
export function fill(form, request) {
  const left = {};
  for (const [name, value] of Object.entries(request)) {
    const control = [...form.querySelectorAll("[data-kind]")].find((candidate) => nameOf(candidate) === name);
    if (!control || isFile(control)) left[name] = value;
    else if (control.dataset.kind === "switch") control.checked = Boolean(value);
    else if (control.dataset.kind === "choices") for (const box of control.querySelectorAll("input")) box.checked = value.includes(JSON.parse(box.value));
    else if (control.dataset.kind === "choice") control.value = JSON.stringify(value);
    else if (control.dataset.kind === "json") control.value = value === null ? "" : JSON.stringify(value, null, 2);
    else control.value = Array.isArray(value) ? value.join(", ") : (value ?? "");
    control?.dispatchEvent(new Event("input", { bubbles: true }));
  }
  return left;
}

/** A file's bytes in base64. */
export function base64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

/** Base64 (with or without a `data:` prefix) as a Blob. */
export function blobOf(text, type) {
  const raw = atob(text.slice(text.indexOf(",") + 1).replace(/\s+/g, ""));
  return new Blob([Uint8Array.from(raw, (c) => c.charCodeAt(0))], { type: type ?? pictureType(text) ?? "application/octet-stream" });
}

/** The media type of a picture in base64, or null for a text that is none. */
export function pictureType(text) {
  if (typeof text !== "string" || text.length < 60) return null;
  if (text.startsWith("data:image/")) return text.slice(5, text.indexOf(";"));
  const starts = { iVBORw0KGgo: "image/png", "/9j/": "image/jpeg", UklGR: "image/webp" };
  return Object.entries(starts).find(([start]) => text.startsWith(start))?.[1] ?? null;
}
