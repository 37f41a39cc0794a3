/** Strip of the pictures of a page, with the state of each; arrow keys move, Delete removes. */

import { createNode } from "./custom_element.js";

const HEIGHT = 64;
const WORDS = { waiting: "waits", running: "runs", done: "done", failed: "failed", stopped: "stopped" };

export class Filmstrip {
  constructor(part, page) {
    Object.assign(this, { part, page });
    part.addEventListener("click", ({ target }) => this.go(this.indexOf(target)));
    part.addEventListener("keydown", (event) => this.onKey(event));
  }

  indexOf(node) {
    return [...this.part.children].indexOf(node.closest("[role=option]"));
  }

  go(index) {
    const item = this.page.items[index];
    if (item && item !== this.page.current) this.page.select(item);
  }

  onKey(event) {
    const index = this.page.items.indexOf(this.page.current);
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Delete") this.remove(index);
    else if (step) this.go(index + step);
    else return;
    event.preventDefault();
  }

  remove(index) {
    const { items } = this.page;
    if (items.length < 2) return;
    const [gone] = items.splice(index, 1);
    gone.frame?.remove();
    this.page.select(items[Math.min(index, items.length - 1)]);
  }

  /** Draw the strip; it is hidden while there is only one picture. */
  draw() {
    const { items, current } = this.page;
    this.part.hidden = items.length < 2;
    this.page.show(items.some(({ status }) => status === "done"), "exports");
    if (this.part.hidden) return;
    const frames = items.map((item) => (item.frame ??= createFrame(item)));
    if (frames.length !== this.part.children.length || frames.some((frame, at) => this.part.children[at] !== frame)) this.part.replaceChildren(...frames);
    for (const item of items) {
      const isCurrent = item === current;
      item.frame.setAttribute("aria-selected", String(isCurrent));
      item.frame.tabIndex = isCurrent ? 0 : -1;
      item.frame.dataset.status = item.status;
      item.frame.setAttribute("aria-label", `${item.file.name}, ${WORDS[item.status]}`);
    }
    if (this.part.contains(document.activeElement)) current.frame.focus();
  }
}

function createFrame({ file }) {
  const canvas = createNode("canvas", "");
  Object.assign(canvas, { width: HEIGHT, height: HEIGHT });
  const frame = createNode("div", "film-frame", canvas);
  frame.setAttribute("role", "option");
  frame.title = file.name;
  createImageBitmap(file, { resizeHeight: HEIGHT, resizeQuality: "medium" }).then((picture) => {
    canvas.width = Math.min(picture.width, 2 * HEIGHT);
    canvas.getContext("2d").drawImage(picture, 0, 0);
  }, () => {}); // a format that the browser can't show has an empty frame
  return frame;
}
