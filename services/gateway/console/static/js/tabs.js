/** Tabs over sections of a page; the address names the open one, so that a link leads to it. */

class Tabs extends HTMLElement {
  connectedCallback() {
    this.tabs = [...this.querySelectorAll("[role=tab]")];
    this.addEventListener("click", ({ target }) => {
      const tab = target.closest("[role=tab]");
      if (tab) this.open(tab, true);
    });
    this.addEventListener("keydown", (event) => this.onKey(event));
    addEventListener("hashchange", () => this.openHash());
    this.openHash();
  }

  openHash() {
    const named = this.tabs.find((tab) => `#${tab.dataset.tab}` === location.hash);
    if (named || !this.querySelector("[aria-selected=true]")) this.open(named ?? this.tabs[0], false); // or a link to a part
  }

  open(chosen, isClicked) {
    for (const tab of this.tabs) {
      const isOpen = tab === chosen;
      tab.setAttribute("aria-selected", String(isOpen));
      tab.tabIndex = isOpen ? 0 : -1;
      document.getElementById(tab.getAttribute("aria-controls")).hidden = !isOpen;
    }
    if (isClicked) history.replaceState(null, "", `#${chosen.dataset.tab}`);
  }

  onKey(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !event.target.closest("[role=tab]")) return;
    const next = this.tabs[(this.tabs.indexOf(event.target) + step + this.tabs.length) % this.tabs.length];
    this.open(next, true);
    next.focus();
    event.preventDefault();
  }
}

customElements.define("fovea-tabs", Tabs);
