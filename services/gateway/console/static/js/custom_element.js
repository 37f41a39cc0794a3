/**
 * Base class of the console's custom elements: parts by name, event delegation, and one way to show errors and progress.
 * The server renders every part; an element only fills them, so no HTML is written in JavaScript.
 */

export class CustomElement extends HTMLElement {
  /** The descendant with `data-part=name`. */
  part(name) {
    return this.querySelector(`[data-part="${name}"]`);
  }

  /** Listen to events of a part, also of one that is added later. */
  on(type, name, handle) {
    this.addEventListener(type, (event) => {
      const target = event.target.closest(`[data-part="${name}"]`);
      if (target && this.contains(target)) handle(event, target);
    });
  }

  /** Set the text of a part; null empties it. */
  setText(name, text) {
    const part = this.part(name);
    if (part) part.textContent = text ?? "";
  }

  /** Show or hide parts. */
  show(isVisible, ...names) {
    for (const name of names) {
      const part = this.part(name);
      if (part) part.hidden = !isVisible;
    }
  }

  /** A copy of the content of the template with `data-part=name`. */
  cloneTemplate(name) {
    return this.querySelector(`template[data-part="${name}"]`).content.firstElementChild.cloneNode(true);
  }

  /** Show what went wrong and what to try; `null` hides it. An abort is not an error. */
  showError(problem) {
    const isVisible = problem !== null && problem.name !== "AbortError";
    this.show(isVisible, "fault");
    if (!isVisible) return;
    this.setText("fault-title", problem.title ?? "Something went wrong");
    this.setText("fault-detail", problem.message);
    this.setText("fault-hint", problem.hint);
    this.setText("fault-id", problem.requestId ? `Request ${problem.requestId}` : "");
  }

  /** Show the progress of a request: a fraction, `undefined` when unknown, null when it has ended. */
  showProgress(fraction, note) {
    this.show(fraction !== null, "progress");
    const bar = this.part("progress-bar");
    if (fraction === null || !bar) return;
    if (fraction === undefined) bar.removeAttribute("value");
    else bar.value = fraction;
    this.setText("progress-figure", fraction === undefined ? "" : `${Math.round(fraction * 100)} %`);
    if (note) this.setText("progress-note", note);
  }
}
