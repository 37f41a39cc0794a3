/** Takes a picture that is dropped, pasted or chosen, and says so with a `fovea-picture` event. */

import { Part } from "./element.js";

export class Drop extends Part {
  connectedCallback() {
    this.target = this.closest("[data-path]");
    this.signal = new AbortController();
    const options = { signal: this.signal.signal };
    for (const type of ["dragover", "dragenter"]) this.target.addEventListener(type, (e) => this.drag(e, true), options);
    this.target.addEventListener("dragleave", (e) => this.drag(e, this.target.contains(e.relatedTarget)), options);
    this.target.addEventListener("drop", (e) => {
      this.drag(e, false);
      this.take(e.dataTransfer.files[0]);
    }, options);
    document.addEventListener("paste", (e) => this.take(e.clipboardData.files[0]), options);
    this.on("change", "file", (_, input) => {
      this.take(input.files[0]);
      input.value = "";
    });
  }

  disconnectedCallback() {
    this.signal.abort();
  }

  drag(event, over) {
    event.preventDefault();
    this.target.classList.toggle("dragging", over);
  }

  take(file) {
    if (file) this.dispatchEvent(new CustomEvent("fovea-picture", { bubbles: true, detail: file }));
  }
}
