/**
 * Shows an answer whose form nobody here knows: pictures as pictures, figures as a list, tables as tables, the rest as
 * JSON that can be opened. This is what lets a new model appear without a new page.
 */

import { blobOf, pictureType } from "./form.js";

const make = (tag, className, ...children) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
};

const words = (name) => String(name).replaceAll("_", " ");
const isRow = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const isTable = (value) => Array.isArray(value) && value.length > 0 && value.every(isRow);

export class Answer extends HTMLElement {
  /** Draw the body of a response. */
  async draw(response) {
    const type = response.headers.get("content-type") ?? "";
    if (type.startsWith("image/")) this.replaceChildren(picture(words("picture"), await response.blob()));
    else if (type.includes("json")) this.drawJson(await response.json());
    else this.replaceChildren(make("p", "answer-text", await response.text()));
    this.hidden = false;
  }

  /** Put a picture of the answer above it. */
  above(blob) {
    const figure = picture("the answer as a picture", blob);
    figure.className = "answer-whole";
    this.prepend(figure);
  }

  drawJson(value) {
    const entries = isRow(value) ? Object.entries(value) : [["answer", value]];
    const pictures = entries.flatMap(([name, part]) => picturesIn(name, part));
    const facts = entries.filter(([, part]) => typeof part !== "object" && !pictureType(part));
    const tables = entries.filter(([, part]) => isTable(part));
    this.replaceChildren(
      ...(chatText(value) ?? []),
      ...(pictures.length ? [make("div", "answer-pictures", ...pictures)] : []),
      ...(facts.length ? [factList(facts)] : []),
      ...tables.map(([name, rows]) => table(name, rows)),
      raw(value),
    );
    this.hidden = false;
  }
}

function picturesIn(name, value) {
  const texts = Array.isArray(value) ? value : [value];
  return texts.filter(pictureType).map((text) => picture(words(name), blobOf(text)));
}

function picture(caption, blob) {
  const image = new Image();
  image.alt = caption;
  image.src = URL.createObjectURL(blob);
  image.onload = () => URL.revokeObjectURL(image.src);
  return make("figure", "", image, make("figcaption", "", caption));
}

function chatText(value) {
  const text = value?.choices?.[0]?.message?.content ?? value?.choices?.[0]?.text;
  return typeof text === "string" ? [make("p", "answer-text", text)] : null;
}

function factList(facts) {
  return make("dl", "answer-facts", ...facts.flatMap(([name, value]) => [make("dt", "", words(name)), make("dd", "figures", shown(value))]));
}

function table(name, rows) {
  const columns = [...new Set(rows.flatMap(Object.keys))].filter((column) => rows.every((row) => !pictureType(row[column])));
  const head = make("thead", "", make("tr", "", ...columns.map((c) => Object.assign(make("th", "", words(c)), { scope: "col" }))));
  const lines = rows.slice(0, 200).map((row) => make("tr", "", ...columns.map((c) => cell(shown(row[c])))));
  const caption = rows.length > 200 ? `${words(name)}, first 200 of ${rows.length}` : words(name);
  const region = make("div", "scroll", make("table", "", make("caption", "hidden", caption), head, make("tbody", "", ...lines)));
  region.tabIndex = 0;
  return make("section", "", make("h3", "", caption), region);
}

const cell = (text) => make("td", text.length > 40 ? "figures answer-long" : "figures", text);

function shown(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "number") return Number.isInteger(value) ? String(value) : value.toPrecision(4);
  if (isTable(value)) return shorten(value.map((row) => Object.values(row).filter((part) => part !== null).map(shown).join(" ")).join(" · "));
  if (typeof value === "object") return shorten(JSON.stringify(value));
  return String(value);
}

const shorten = (text) => (text.length > 120 ? `${text.slice(0, 117)}…` : text);

function raw(value) {
  const text = JSON.stringify(value, (_, part) => (typeof part === "string" && part.length > 400 ? `${part.slice(0, 60)}… (${part.length} characters)` : part), 2);
  return make("details", "answer-raw", make("summary", "", "JSON"), make("pre", "", make("code", "", text)));
}
