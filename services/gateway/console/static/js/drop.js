/** Picture input: takes a dropped, pasted or chosen file, and dispatches `fovea-picture`. */

import { CustomElement } from "./custom_element.js";

export class Drop extends CustomElement {
  connectedCallback() {
    this.target = this.closest("[data-path]");
    this.listeners = new AbortController();
    const options = { signal: this.listeners.signal };
    for (const type of ["dragover", "dragenter"]) this.target.addEventListener(type, (e) => this.markDragging(e, true), options);
    this.target.addEventListener("dragleave", (e) => this.markDragging(e, this.target.contains(e.relatedTarget)), options);
    this.target.addEventListener("drop", (e) => {
      this.markDragging(e, false);
      this.dispatchPicture(e.dataTransfer.files[0]);
    }, options);
    document.addEventListener("paste", (e) => this.dispatchPicture(e.clipboardData.files[0]), options);
    this.on("change", "file", (_, input) => {
      this.dispatchPicture(input.files[0]);
      input.value = "";
    });
  }

  disconnectedCallback() {
    this.listeners.abort();
  }

  markDragging(event, over) {
    event.preventDefault();
    this.target.classList.toggle("dragging", over);
  }

  dispatchPicture(file) {
    if (file) this.dispatchEvent(new CustomEvent("fovea-picture", { bubbles: true, detail: file }));
  }
}
