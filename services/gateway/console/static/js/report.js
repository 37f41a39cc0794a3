/** HTML reports of experiments as nodes of a page. */

import { addTools } from "./figure_tools.js";

/** The nodes of a report, without its head: a style sheet there breaks this page's security policy when it is parsed. */
export function readReport(text) {
  const main = new DOMParser().parseFromString(text.slice(text.indexOf("<main>")), "text/html").querySelector("main");
  const title = document.createElement("h2");
  title.textContent = main.querySelector("h1").textContent;
  main.querySelector("h1").replaceWith(title);
  addTools([main]);
  return [...main.childNodes].map((node) => document.adoptNode(node));
}
