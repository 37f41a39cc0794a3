/** The dialog “Use via API”: the request of the present page, with its present values, in curl, Python and JavaScript. */

import { createButton, createNode, partOf } from "./custom_element.js";
import { storedKey } from "./gateway.js";
import { RunForm } from "./run_form.js";
import { copyText } from "./save.js";

const LONGEST_TEXT = 400;

export async function open() {
  const dialog = document.getElementById("code-dialog");
  const places = partOf(dialog, "code-list");
  try {
    const request = await describePage();
    partOf(dialog, "code-about").textContent = `${request.method ?? "POST"} ${request.path}, with the values of this page.`;
    places.replaceChildren(...Object.entries(writeCode(request)).map(([title, text]) => createCode(title, text)));
  } catch (problem) {
    partOf(dialog, "code-about").textContent = problem.message;
    places.replaceChildren();
  }
  dialog.showModal();
}

/** The request of the form that is open in the page, else of the list that the page shows. */
async function describePage() {
  const forms = [...document.querySelectorAll("main *")].filter((node) => node instanceof RunForm && node.checkVisibility());
  const focused = forms.find((form) => form.contains(document.activeElement));
  const described = await (focused ?? forms[0])?.describeRequest();
  if (described) return described;
  const lists = { "/console/jobs": "/v1/jobs", "/console/sessions": "/v1/sessions" };
  const card = location.pathname.match(/^\/console\/models\/(.+)/)?.[1];
  return { method: "GET", path: card ? `/v1/models/${card}` : (lists[location.pathname] ?? "/v1/models") };
}

/** A request as code: JSON (`json`) or a form with a file (`body`). */
export function writeCode({ method = "POST", path, json, body }) {
  const url = location.origin + path;
  const key = storedKey() ? "fovea_…" : null;
  const fields = body ? [...body].map(([name, value]) => ({ name, file: value instanceof File ? value.name : null, value })) : [];
  const text = json === undefined ? null : JSON.stringify(shorten(json), null, 2);
  return { curl: writeCurl({ method, url, key, fields, text }), Python: writePython({ method, url, key, fields, text }), JavaScript: writeScript({ method, url, key, fields, text }) };
}

const quote = (text) => `'${String(text).replaceAll("'", "'\\''")}'`;

function writeCurl({ method, url, key, fields, text }) {
  const lines = [`curl ${method === "POST" ? "" : `-X ${method} `}${quote(url)}`];
  if (key) lines.push(`-H 'Authorization: Bearer ${key}'`);
  if (text) lines.push("-H 'Content-Type: application/json'", `-d ${quote(text)}`);
  for (const { name, file, value } of fields) lines.push(file === null ? `--form-string ${quote(`${name}=${value}`)}` : `-F ${quote(`${name}=@${/[",;\\]/.test(file) ? `"${file.replace(/["\\]/g, "\\$&")}"` : file}`)}`);
  return lines.join(" \\\n  ");
}

function writePython({ method, url, key, fields, text }) {
  const options = [];
  if (key) options.push(`headers={"Authorization": "Bearer ${key}"}`);
  if (text) options.push(`json=${toPython(JSON.parse(text))}`);
  const [values, files] = [fields.filter(({ file }) => file === null), fields.filter(({ file }) => file !== null)];
  if (values.length) options.push(`data=${toPython(Object.fromEntries(values.map(({ name, value }) => [name, value])))}`);
  if (files.length) options.push(`files=[${files.map(({ name, file }) => `(${JSON.stringify(name)}, open(${JSON.stringify(file)}, "rb"))`).join(", ")}]`);
  const parts = [JSON.stringify(url), ...options, "timeout=600"].map((part) => `    ${part.replaceAll("\n", "\n    ")},`);
  return `import httpx\n\nanswer = httpx.${method.toLowerCase()}(\n${parts.join("\n")}\n)\nanswer.raise_for_status()\nprint(answer.json())`;
}

/** A JSON value as a Python literal. */
export function toPython(value, indent = "") {
  const inner = `${indent}    `;
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return value.length ? `[\n${value.map((part) => `${inner}${toPython(part, inner)},`).join("\n")}\n${indent}]` : "[]";
  if (typeof value === "object") return `{\n${Object.entries(value).map(([name, part]) => `${inner}${JSON.stringify(name)}: ${toPython(part, inner)},`).join("\n")}\n${indent}}`;
  return JSON.stringify(value);
}

function writeScript({ method, url, key, fields, text }) {
  const lines = [];
  if (fields.length) {
    lines.push("const body = new FormData();");
    for (const { name, file, value } of fields) lines.push(`body.append(${JSON.stringify(name)}, ${file === null ? JSON.stringify(value) : `file, ${JSON.stringify(file)}); // a File or Blob`}${file === null ? ");" : ""}`);
  }
  const headers = [key && `Authorization: "Bearer ${key}"`, text && '"Content-Type": "application/json"'].filter(Boolean);
  const options = [`method: "${method}"`, headers.length && `headers: { ${headers.join(", ")} }`, text && `body: JSON.stringify(${text.replaceAll("\n", "\n  ")})`, fields.length && "body"].filter(Boolean);
  lines.push(`const answer = await fetch(${JSON.stringify(url)}, {`, ...options.map((option) => `  ${option},`), "});", "console.log(await answer.json());");
  return lines.join("\n");
}

/** A request in which long texts, such as encoded pictures, are cut. */
const shorten = (json) => JSON.parse(JSON.stringify(json, (_, part) => (typeof part === "string" && part.length > LONGEST_TEXT ? `${part.slice(0, 40)}…` : part)));

function createCode(title, text) {
  const copy = createButton("Copy", async () => {
    await copyText(text);
    copy.textContent = "Copied";
  }, "quiet small");
  copy.setAttribute("aria-label", `Copy the ${title} code`);
  const pre = createNode("pre", "", createNode("code", "", text));
  Object.assign(pre, { tabIndex: 0 });
  pre.setAttribute("role", "region");
  pre.setAttribute("aria-label", title);
  return createNode("div", "code", createNode("div", "code-head", createNode("h3", "", title), copy), pre);
}
