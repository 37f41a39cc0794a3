/**
 * Generic result view: shows pictures as pictures, numbers as a list, arrays of objects as tables, the rest as JSON.
 * A model of an unknown task is shown with it, without a page of its own.
 */

import { createContext } from "./canvas.js";
import { createNode } from "./custom_element.js";
import { decodeBase64, detectPictureType } from "./form.js";
import { readReport } from "./report.js";

const words = (name) => String(name).replaceAll("_", " ");
const isRow = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const isTable = (value) => Array.isArray(value) && value.length > 0 && value.every(isRow);

export class ResultView extends HTMLElement {
  /** Draw the body of a response. */
  async draw(response) {
    const type = response.headers.get("content-type") ?? "";
    if (type.startsWith("image/")) this.replaceChildren(createFigure(words("picture"), await response.blob()));
    else if (type.includes("json")) this.drawJson(await response.json());
    else if (type.startsWith("text/html")) this.replaceChildren(createNode("article", "report", ...readReport(await response.text())));
    else this.replaceChildren(createNode("p", "answer-text", await response.text()));
    this.hidden = false;
  }

  /** Show the answer as a picture above its facts. */
  addPicture(blob) {
    const figure = createFigure("the answer as a picture", blob);
    figure.className = "answer-whole";
    this.prepend(figure);
  }

  drawJson(value) {
    const entries = isRow(value) ? Object.entries(value) : [["answer", value]];
    const pictures = entries.flatMap(([name, part]) => createFigures(name, part));
    const facts = entries.filter(([, part]) => typeof part !== "object" && !detectPictureType(part));
    const tables = entries.filter(([, part]) => isTable(part));
    this.replaceChildren(
      ...(createChatText(value) ?? []),
      ...(pictures.length ? [createNode("div", "answer-pictures", ...pictures)] : []),
      ...(facts.length ? [createFactList(facts)] : []),
      ...findMatrices(value).slice(0, 12).map(createHeatMap),
      ...tables.map(([name, rows]) => createTable(name, rows)),
      createJson(value),
    );
    this.hidden = false;
  }
}

function createFigures(name, value) {
  const texts = Array.isArray(value) ? value : [value];
  return texts.filter(detectPictureType).map((text) => createFigure(words(name), decodeBase64(text)));
}

function createFigure(caption, blob) {
  const image = new Image();
  image.alt = caption;
  image.src = URL.createObjectURL(blob);
  image.onload = () => URL.revokeObjectURL(image.src);
  return createNode("figure", "", image, createNode("figcaption", "", caption));
}

function createChatText(value) {
  const text = value?.choices?.[0]?.message?.content ?? value?.choices?.[0]?.text;
  return typeof text === "string" ? [createNode("p", "answer-text", text)] : null;
}

function createFactList(facts) {
  return createNode("dl", "answer-facts", ...facts.flatMap(([name, value]) => [createNode("dt", "", words(name)), createNode("dd", "figures", formatValue(value))]));
}

function createTable(name, rows) {
  const columns = [...new Set(rows.flatMap(Object.keys))].filter((column) => rows.every((row) => !detectPictureType(row[column])));
  const head = createNode("thead", "", createNode("tr", "", ...columns.map((c) => Object.assign(createNode("th", "", words(c)), { scope: "col" }))));
  const lines = rows.slice(0, 200).map((row) => createNode("tr", "", ...columns.map((c) => createCell(formatValue(row[c])))));
  const caption = rows.length > 200 ? `${words(name)}, first 200 of ${rows.length}` : words(name);
  const region = createNode("div", "scroll", createNode("table", "", createNode("caption", "hidden", caption), head, createNode("tbody", "", ...lines)));
  region.tabIndex = 0;
  return createNode("section", "", createNode("h3", "", caption), region);
}

const isMatrix = (value) => Array.isArray(value) && value.length > 1 && value.every((row) => Array.isArray(row) && row.length === value[0].length && (row.length > 2 || row.length === value.length) && row.every((cell) => cell === null || typeof cell === "number"));

/** The matrices of numbers in an answer, with the name of each. */
function findMatrices(value, name = "") {
  if (isMatrix(value)) return [{ name, rows: value }];
  if (typeof value !== "object" || value === null) return [];
  return Object.entries(value).flatMap(([key, part]) => findMatrices(part, Array.isArray(value) ? (value.title ?? part?.title ?? name) : (value.title ?? `${name} ${words(key)}`.trim())));
}

/** A matrix as a picture: the larger a number, the darker its cell. */
function createHeatMap({ name, rows }) {
  const numbers = rows.flat().filter((cell) => cell !== null);
  const [low, high] = [numbers.reduce((a, b) => Math.min(a, b)), numbers.reduce((a, b) => Math.max(a, b))];
  const context = createContext(rows[0].length, rows.length);
  rows.forEach((row, y) => row.forEach((cell, x) => {
    context.fillStyle = cell === null ? "#fff" : `hsl(172 60% ${Math.round(95 - (70 * (cell - low)) / (high - low || 1))}%)`;
    context.fillRect(x, y, 1, 1);
  }));
  context.canvas.setAttribute("role", "img");
  context.canvas.setAttribute("aria-label", `${name}: ${rows.length} × ${rows[0].length} numbers from ${formatValue(low)} to ${formatValue(high)}`);
  return createNode("figure", "heat-map", context.canvas, createNode("figcaption", "", `${name}, ${formatValue(low)} to ${formatValue(high)}`));
}

const createCell = (text) => createNode("td", text.length > 40 ? "figures answer-long" : "figures", text);

function formatValue(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "number") return Number.isInteger(value) ? String(value) : Math.abs(value) < 1000 ? value.toPrecision(4) : value.toFixed(1);
  if (isTable(value)) return shorten(value.map((row) => Object.values(row).filter((part) => part !== null).map(formatValue).join(" ")).join(" · "));
  if (typeof value === "object") return shorten(JSON.stringify(value));
  return String(value);
}

const shorten = (text) => (text.length > 120 ? `${text.slice(0, 117)}…` : text);

function createJson(value) {
  const text = JSON.stringify(value, (_, part) => (typeof part === "string" && part.length > 400 ? `${part.slice(0, 60)}… (${part.length} characters)` : part), 2);
  return createNode("details", "answer-raw", createNode("summary", "", "JSON"), createNode("pre", "", createNode("code", "", text)));
}

customElements.define("fovea-result", ResultView);
