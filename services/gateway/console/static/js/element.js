/**
 * What all our elements share: parts found by name, events that survive a swapped form, and one way to show an error.
 * The server draws every part; an element only fills them, so no HTML is written in JavaScript.
 */

export class Part extends HTMLElement {
  /** The descendant that is drawn as `data-part=name`. */
  part(name) {
    return this.querySelector(`[data-part="${name}"]`);
  }

  /** Listen to events of a part, also of one that is drawn later. */
  on(type, name, handle) {
    this.addEventListener(type, (event) => {
      const target = event.target.closest(`[data-part="${name}"]`);
      if (target && this.contains(target)) handle(event, target);
    });
  }

  /** Put text into a part; null or an empty text leaves it blank. */
  say(name, text) {
    const part = this.part(name);
    if (part) part.textContent = text ?? "";
  }

  /** Show or hide parts. */
  show(shown, ...names) {
    for (const name of names) {
      const part = this.part(name);
      if (part) part.hidden = !shown;
    }
  }

  /** A copy of the content of the template drawn as `data-part=name`. */
  copyOf(name) {
    return this.querySelector(`template[data-part="${name}"]`).content.firstElementChild.cloneNode(true);
  }

  /** Tell the reader what went wrong and what to try; `null` takes it back. An abort is no error. */
  fault(problem) {
    const visible = problem !== null && problem.name !== "AbortError";
    this.show(visible, "fault");
    if (!visible) return;
    this.say("fault-title", problem.title ?? "Something went wrong");
    this.say("fault-detail", problem.message);
    this.say("fault-hint", problem.hint);
    this.say("fault-id", problem.requestId ? `Request ${problem.requestId}` : "");
  }

  /** Show how far a request is: a fraction, `undefined` when unknown, null when it is over. */
  progress(fraction, note) {
    this.show(fraction !== null, "progress");
    const bar = this.part("progress-bar");
    if (fraction === null || !bar) return;
    if (fraction === undefined) bar.removeAttribute("value");
    else bar.value = fraction;
    this.say("progress-figure", fraction === undefined ? "" : `${Math.round(fraction * 100)} %`);
    if (note) this.say("progress-note", note);
  }
}
