/** Tools of a report's figures: the value under the pointer or finger in words, and each figure as SVG, PNG or CSV. */

import { createButton, createNode } from "./custom_element.js";
import { writeCells, writeCsv } from "./export_all.js";
import { save } from "./save.js";

const PNG_SCALE = 2;

/** Add the tools to all figures and tables among some nodes. */
export function addTools(nodes) {
  const elements = nodes.filter((node) => node.nodeType === Node.ELEMENT_NODE);
  const all = (selector) => elements.flatMap((node) => [...(node.matches(selector) ? [node] : []), ...node.querySelectorAll(selector)]);
  all("figure > svg").forEach((svg, at) => addFigureTools(svg, `figure-${at + 1}`));
  all("table").forEach((table, at) => {
    const button = createButton("CSV", () => save(new Blob([readTable(table)], { type: "text/csv" }), `table-${at + 1}.csv`), "quiet small");
    button.setAttribute("aria-label", `Table ${at + 1} as CSV`);
    table.after(createNode("p", "figure-tools", button));
  });
}

function addFigureTools(svg, name) {
  const value = createNode("output", "figures muted");
  value.setAttribute("aria-live", "off");
  const values = readValues(svg);
  const csv = values.length ? [["CSV", () => save(new Blob([writeCsv(values)], { type: "text/csv" }), `${name}.csv`)]] : [];
  const buttons = [...csv, ["SVG", () => save(toSvgBlob(svg), `${name}.svg`)], ["PNG", async () => save(await toPng(svg), `${name}.png`)]].map(([words, act]) => {
    const button = createButton(words, act, "quiet small");
    button.setAttribute("aria-label", `${name.replace("-", " ")} as ${words}`);
    return button;
  });
  svg.parentElement.after(createNode("p", "figure-tools", value, createNode("span", "", ...buttons)));
  for (const type of ["pointerover", "focusin", "click"]) svg.addEventListener(type, ({ target }) => (value.textContent = findTitle(target, svg)));
}

/** The text of the nearest `<title>` around a part of a figure; the figure's own title says nothing of the part. */
function findTitle(node, svg) {
  for (let part = node; part && part !== svg; part = part.parentElement) {
    const title = [...part.children].find((child) => child.tagName === "title");
    if (title) return title.textContent;
  }
  return "";
}

/** The values of a figure, which its parts have in their titles: `row / column: value` or `label: value`. */
function readValues(svg) {
  const titles = [...svg.querySelectorAll("rect > title, line > title")].map(({ textContent }) => textContent.match(/^([^]*): (\S+)(?: (.*))?$/)).filter(Boolean);
  return titles.map(([, label, value]) => {
    const cells = label.split(" / ");
    return cells.length === 2 ? { row: cells[0], column: cells[1], value } : { label, value };
  });
}

const toSvgBlob = (svg) => new Blob([new XMLSerializer().serializeToString(svg)], { type: "image/svg+xml" });

/** A figure as PNG, on white. */
async function toPng(svg) {
  const url = URL.createObjectURL(toSvgBlob(svg));
  const image = new Image();
  image.src = url;
  await image.decode();
  const { width, height } = svg.viewBox.baseVal.width ? svg.viewBox.baseVal : svg.getBoundingClientRect();
  const canvas = Object.assign(document.createElement("canvas"), { width: PNG_SCALE * width, height: PNG_SCALE * height });
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  URL.revokeObjectURL(url);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

/** A table as CSV, with whole numbers, which are in the titles; the one of a report's numbers has no head. */
function readTable(table) {
  const rows = [...table.rows].map((row) => [...row.cells].map((cell) => cell.title.trim() || cell.textContent.trim()));
  return writeCells(table.tHead ? rows : [["name", "value", "note"], ...rows]);
}
