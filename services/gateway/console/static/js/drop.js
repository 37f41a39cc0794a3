/** Input of pictures: takes dropped files and folders, pasted and chosen ones, and dispatches `fovea-pictures`. */

import { CustomElement } from "./custom_element.js";

class Drop extends CustomElement {
  connectedCallback() {
    this.target = this.closest("[data-path]");
    this.target.dataset.drops = "";
    this.listeners = new AbortController();
    const options = { signal: this.listeners.signal };
    for (const type of ["dragover", "dragenter"]) this.target.addEventListener(type, (e) => this.markDragging(e, true), options);
    this.target.addEventListener("dragleave", (e) => this.markDragging(e, this.target.contains(e.relatedTarget)), options);
    this.target.addEventListener("drop", (e) => this.takeDrop(e), options);
    this.target.addEventListener("fovea-files", (e) => this.dispatchFiles(e.detail), options);
    document.addEventListener("paste", (e) => this.dispatchFiles([...e.clipboardData.files]), options);
    this.on("change", "file", (_, input) => {
      this.dispatchFiles([...input.files]);
      input.value = "";
    });
  }

  disconnectedCallback() {
    this.listeners.abort();
  }

  markDragging(event, over) {
    if (!event.dataTransfer.types.includes("Files")) return; // text goes into a field
    event.preventDefault();
    this.target.classList.toggle("dragging", over);
  }

  async takeDrop(event) {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.stopPropagation();
    this.markDragging(event, false);
    const takesOthers = this.closest("[data-addons]") !== null;
    const items = [...event.dataTransfer.items].filter(({ kind }) => kind === "file").map((item) => ({ entry: item.webkitGetAsEntry?.(), file: item.getAsFile() }));
    const found = await Promise.all(items.map(({ entry, file }) => (entry?.isDirectory ? readFolder(entry, takesOthers) : file)));
    if (!found.flat().length) this.target.showError({ title: "No images", message: "There is no image in what was dropped." });
    this.dispatchFiles(found.flat());
  }

  dispatchFiles(files) {
    if (files.length) this.dispatchEvent(new CustomEvent("fovea-pictures", { bubbles: true, detail: files }));
  }
}

/** The pictures in a dropped folder and below it, by name; with `takesOthers` also files that a plug-in may open. */
async function readFolder(folder, takesOthers) {
  const reader = folder.createReader();
  const read = (from, method) => new Promise((resolve) => from[method](resolve, () => resolve([]))); // without what can't be read
  const entries = [];
  for (;;) {
    const some = await read(reader, "readEntries");
    if (!some.length) break;
    entries.push(...some);
  }
  const found = await Promise.all(entries.map((entry) => (entry.isDirectory ? readFolder(entry, takesOthers) : read(entry, "file").then((file) => Object.assign(file, { path: entry.fullPath.slice(1) })))));
  const isKnown = ({ name, type }) => type.startsWith("image/") || /\.tiff?$/i.test(name) || (takesOthers && /^[^.]+$|^[\d.]+$|\.dcm$/i.test(name));
  return found.flat().filter(isKnown).sort((a, b) => a.name.localeCompare(b.name));
}

customElements.define("fovea-drop", Drop);
