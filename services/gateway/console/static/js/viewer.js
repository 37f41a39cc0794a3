/** Frame of a picture: zoom by buttons, keys and the wheel, pan by dragging and scrolling, full screen. */

const STEPS = 7;

class Viewer extends HTMLElement {
  connectedCallback() {
    this.step = 0;
    this.parentElement.addEventListener("click", ({ target }) => target.closest("button[data-zoom]") && this.act(target.dataset.zoom));
    this.addEventListener("keydown", (event) => {
      const verb = { "+": "in", "=": "in", "-": "out", 0: "fit", f: "full" }[event.key];
      if (!verb || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      this.act(verb);
    });
    this.addEventListener("wheel", (event) => {
      if (!event.ctrlKey) return; // pinching is a wheel with Ctrl
      event.preventDefault();
      this.zoom(this.step + (event.deltaY < 0 ? 1 : -1), event);
    }, { passive: false });
    this.addEventListener("pointerdown", (event) => this.startPan(event));
    this.addEventListener("pointermove", (event) => this.pan(event));
    for (const type of ["pointerup", "pointercancel"]) this.addEventListener(type, () => (this.grip = null));
  }

  act(verb) {
    if (verb === "full") return document.fullscreenElement ? document.exitFullscreen() : this.requestFullscreen();
    return this.zoom({ in: this.step + 1, out: this.step - 1, fit: 0 }[verb]);
  }

  /** Zoom to a step (the picture's width in the style sheet), around a point or the middle. */
  zoom(step, event) {
    const box = this.getBoundingClientRect();
    const at = event ? [event.clientX - box.left, event.clientY - box.top] : [box.width / 2, box.height / 2];
    const canvas = this.firstElementChild;
    const share = [(this.scrollLeft + at[0]) / canvas.clientWidth, (this.scrollTop + at[1]) / canvas.clientHeight];
    this.step = Math.max(0, Math.min(STEPS, step));
    this.dataset.zoom = this.step;
    this.scrollTo(share[0] * canvas.clientWidth - at[0], share[1] * canvas.clientHeight - at[1]);
    this.dispatchEvent(new Event("fovea-view"));
  }

  /** Show the same part as another view of a picture of the same shape. */
  follow(other) {
    this.step = other.step;
    this.dataset.zoom = this.step;
    this.scrollTo((other.scrollLeft / other.scrollWidth) * this.scrollWidth, (other.scrollTop / other.scrollHeight) * this.scrollHeight);
  }

  startPan(event) {
    if (!this.step || event.pointerType === "touch") return;
    this.grip = { x: event.clientX + this.scrollLeft, y: event.clientY + this.scrollTop };
    this.setPointerCapture(event.pointerId);
  }

  pan(event) {
    if (this.grip) this.scrollTo(this.grip.x - event.clientX, this.grip.y - event.clientY);
  }
}

customElements.define("fovea-viewer", Viewer);
