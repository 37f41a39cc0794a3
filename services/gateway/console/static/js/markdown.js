/**
 * Markdown of an answer as nodes: the only place where text of a model becomes markup. `marked` reads it, raw HTML in it
 * stays text, DOMPurify drops everything that is not plain structure, and formulas become MathML (`temml`, on demand).
 */

import { createButton, createNode } from "./custom_element.js";
import { copyText } from "./save.js";
import DOMPurify from "../vendor/purify.js";
import { Marked } from "../vendor/marked.js";

const ALLOWED = {
  ALLOWED_TAGS: [
    "p", "br", "strong", "em", "del", "code", "pre", "blockquote", "ul", "ol", "li", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "a",
    "table", "thead", "tbody", "tr", "th", "td", "span",
  ],
  ALLOWED_ATTR: ["href", "title", "start", "align", "class", "data-tex", "data-display"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  RETURN_DOM_FRAGMENT: true,
};

const FORMULAS = [[/^\$\$([\s\S]+?)\$\$/, true], [/^\\\[([\s\S]+?)\\\]/, true], [/^\\\(([\s\S]+?)\\\)/, false], [/^\$(?![\s\d])([^$\n]*[^\s$\\])\$(?!\d)/, false]];

const escape = (text) => text.replace(/[&<>"]/g, (letter) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[letter]);

const formula = {
  name: "formula",
  level: "inline",
  start: (text) => text.search(/\$|\\[[(]/),
  tokenizer(text) {
    for (const [pattern, isDisplayed] of FORMULAS) {
      const match = pattern.exec(text);
      if (match) return { type: "formula", raw: match[0], tex: match[1].trim(), isDisplayed };
    }
    return undefined;
  },
  renderer: ({ tex, raw, isDisplayed }) => `<span data-tex="${escape(tex)}" ${isDisplayed ? 'data-display="yes"' : ""}>${escape(raw)}</span>`,
};

/** A formula in lines of its own, which may begin with a sign that would begin a list. */
const block = {
  ...formula,
  name: "block",
  level: "block",
  start: (text) => text.match(/^(?:\$\$|\\\[)/m)?.index,
  tokenizer(text) {
    const match = /^(?:\$\$((?:(?!\n\s*\n)[^])+?)\$\$|\\\[((?:(?!\n\s*\n)[^])+?)\\\])[ \t]*(?:\n|$)/.exec(text);
    return match ? { type: "block", raw: match[0], tex: (match[1] ?? match[2]).trim(), isDisplayed: true } : undefined;
  },
};

const marked = new Marked({
  breaks: true,
  gfm: true,
  extensions: [formula, block],
  renderer: {
    html: ({ text }) => escape(text),
    image: ({ href, text }) => `<a href="${escape(href)}">${escape(text || href)}</a>`,
    br: () => "<br>\n",
  },
});

/** Render markdown as nodes. Formulas appear as text first, and as MathML once the library is there. */
export function render(text) {
  const fragment = DOMPurify.sanitize(marked.parse(text), ALLOWED);
  for (const link of fragment.querySelectorAll("a")) Object.assign(link, { target: "_blank", rel: "noopener noreferrer" });
  for (const table of fragment.querySelectorAll("table")) wrapTable(table);
  for (const code of fragment.querySelectorAll("pre > code")) addCopy(code);
  const formulas = [...fragment.querySelectorAll("[data-tex]")];
  if (formulas.length) renderFormulas(formulas);
  return [...fragment.childNodes];
}

async function renderFormulas(places) {
  const { default: temml } = await import("../vendor/temml.js");
  for (const place of places) {
    try {
      temml.render(place.dataset.tex, place, { displayMode: "display" in place.dataset, throwOnError: true });
    } catch {
      // What is no formula stays the text that it is.
    }
  }
}

function wrapTable(table) {
  const region = createNode("div", "scroll");
  table.replaceWith(region);
  region.append(table);
  region.tabIndex = 0;
}

/** A block of code with its language and a copy button. */
function addCopy(code) {
  const pre = code.parentElement;
  const language = code.className.replace("language-", "");
  const copy = createButton("Copy code", async () => {
    await copyText(code.textContent);
    copy.textContent = "Copied";
  }, "quiet small");
  const block = createNode("div", "code-block", createNode("div", "code-head", createNode("span", "muted", language), copy));
  pre.replaceWith(block);
  block.append(pre);
  pre.tabIndex = 0;
}
