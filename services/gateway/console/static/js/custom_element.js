/**
 * Base class of the console's custom elements: parts by name, event delegation, and one way to show errors and progress.
 * The server renders every part; an element only fills them, so no HTML is written in JavaScript.
 */

export class CustomElement extends HTMLElement {
  /** The descendant with `data-part=name`. */
  part(name) {
    return partOf(this, name);
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
    if (part) putText(part, text ?? "");
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

  /**
   * Show what went wrong and what to try; `null` hides it. An abort is not an error. Each of `actions` is a button:
   * its words, and what it does.
   */
  showError(problem, actions = []) {
    const isVisible = problem !== null && problem.name !== "AbortError";
    this.show(isVisible, "fault");
    if (!isVisible) return;
    this.setText("fault-title", problem.title ?? "Something went wrong");
    this.part("fault-detail")?.replaceChildren(...withCode(problem.message));
    this.part("fault-hint")?.replaceChildren(...withCode(problem.hint ?? ""));
    this.setText("fault-id", problem.requestId ? `Request ${problem.requestId}` : "");
    this.part("fault-actions")?.replaceChildren(...actions.map(([words, act]) => createButton(words, () => {
      this.showError(null);
      act();
    })));
  }

  /** Do something and show what goes wrong. */
  async attempt(action) {
    try {
      await action();
    } catch (problem) {
      this.showError(problem);
    }
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

/** The descendant of a node with `data-part=name`. */
export const partOf = (node, name) => node.querySelector(`[data-part="${name}"]`);

/** Set the text of a node; the same text is not announced again, and what is selected of it stays so. */
export function putText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** An element with a class and children. */
export function createNode(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

export function createButton(words, act, className = "button secondary small") {
  const button = createNode("button", className, words);
  button.type = "button";
  button.addEventListener("click", act);
  return button;
}

/** Text as nodes, in which `backticks` mark code. */
const withCode = (text) => String(text).split("`").map((part, place) => (place % 2 ? createNode("code", "", part) : part));
