/** The palette (Ctrl K): finds pages, models and runs by their words. */

import { createNode, partOf } from "./custom_element.js";
import { call } from "./gateway.js";
import { list } from "./runs.js";

const MOST = 12;

const dialog = document.getElementById("palette");
const results = document.getElementById("palette-list");
const query = partOf(dialog, "query");
let entries = [];

export async function open() {
  if (dialog.open) return;
  query.value = "";
  entries = listPages();
  draw();
  dialog.showModal();
  entries = [...entries, ...(await listModels()), ...(await listRuns())];
  draw();
}

const listPages = () => [...document.querySelectorAll("#menu a")].map((link) => ({ title: link.textContent.trim(), kind: "Page", href: link.href }));

const listModels = () => call("/v1/models").then((answer) => answer.json()).then(({ data }) => data.map(({ id, task }) => ({ title: id, kind: `Model, ${task}`, href: `/console/models/${id}` })), () => []);

const listRuns = () => list().then((runs) => runs.map(({ id, title, model, input, time }) => ({ title: [title, model, input].filter(Boolean).join(" · "), kind: new Date(time).toLocaleDateString(), href: `/runs/${id}` })), () => []);

function draw() {
  const words = query.value.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = ({ title, kind }) => words.every((word) => `${title} ${kind}`.toLowerCase().includes(word));
  const rank = ({ title }) => (words[0] && title.toLowerCase().startsWith(words[0]) ? 0 : 1);
  const found = entries.filter(fits).sort((a, b) => rank(a) - rank(b)).slice(0, MOST);
  results.replaceChildren(...found.map(createEntry));
  if (!found.length) results.append(createNode("li", "muted", "Nothing found"));
  choose(0);
}

function createEntry({ title, kind, href }, index) {
  const entry = createNode("li", "", createNode("span", "", title), createNode("span", "muted", kind));
  entry.id = `palette-${index}`;
  entry.dataset.href = href;
  entry.setAttribute("role", "option");
  return entry;
}

function choose(index) {
  const found = [...results.querySelectorAll("[role=option]")];
  const chosen = found[(index + found.length) % (found.length || 1)];
  for (const entry of found) entry.setAttribute("aria-selected", String(entry === chosen));
  chosen?.scrollIntoView({ block: "nearest" });
  query.setAttribute("aria-activedescendant", chosen?.id ?? "");
}

const chosenIndex = () => [...results.children].findIndex((entry) => entry.getAttribute("aria-selected") === "true");

query.addEventListener("input", draw);
query.addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (step) choose(chosenIndex() + step);
  else if (event.key === "Enter") results.querySelector('[aria-selected="true"]')?.click();
  else return;
  event.preventDefault();
});
results.addEventListener("click", ({ target }) => {
  const { href } = target.closest("[data-href]")?.dataset ?? {};
  if (href) location.assign(href);
});
dialog.addEventListener("click", ({ target }) => target === dialog && dialog.close());
