/**
 * The frame of every page: theme, menu, the banner of an outage, and a guard against files dropped beside their target.
 * The palette, the job tray and the code dialog are loaded when they are first used.
 */

import { CustomElement } from "./custom_element.js";
import { forgetKey, storedKey, wasUsed } from "./gateway.js";

const CHECK_MS = 4000;
const THEMES = ["system", "light", "dark"];
const SERVICE_WORDS = {
  "medical-seg": "Segment", detection: "Detect", "vision-restoration": "Restore", "llm-longctx": "Language",
  "relevance-judge": "Judge", interpretability: "Probe",
};

/** The theme button: the system's, light or dark. It is a cookie, so that the server draws pages with it. */
class Theme extends CustomElement {
  connectedCallback() {
    this.on("click", "theme", () => this.choose(THEMES[(THEMES.indexOf(this.theme) + 1) % THEMES.length]));
    this.showTheme();
  }

  get theme() {
    return document.documentElement.dataset.theme;
  }

  choose(theme) {
    document.cookie = `fovea-theme=${theme}; path=/; max-age=${theme === "system" ? 0 : 31_536_000}; samesite=lax`;
    document.documentElement.dataset.theme = theme;
    this.showTheme();
  }

  showTheme() {
    const words = `Theme: ${this.theme}`;
    this.part("theme").setAttribute("aria-label", words);
    this.part("theme").title = words;
  }
}

/** The banner of an outage. It checks until all is well; a page that could not be shown is then opened again. */
class Outage extends CustomElement {
  connectedCallback() {
    document.addEventListener("fovea-outage", () => this.check());
    addEventListener("offline", () => this.check());
    addEventListener("online", () => this.check());
    this.on("click", "check", () => this.check());
    if ("problem" in this.dataset || "check" in this.dataset || !navigator.onLine) this.check();
  }

  async check() {
    clearTimeout(this.timer);
    const state = await fetch("/readyz").then((answer) => answer.json()).catch(() => null);
    const [missing, wasAway] = [state?.not_ready ?? [], !this.hidden];
    this.showState(state, missing);
    if (!state || missing.length) this.timer = setTimeout(() => this.check(), CHECK_MS);
    else if ("problem" in this.dataset) this.timer = setTimeout(() => location.reload(), wasAway ? 0 : CHECK_MS); // what is not the outage's fault may last
  }

  showState(state, missing) {
    const names = missing.map((name) => SERVICE_WORDS[name] ?? name).join(", ");
    const words = state ? `Not available now: ${names}. This page continues by itself.` : "Can’t reach Fovea. Check your connection; this page continues by itself.";
    const isShown = !state || missing.length > 0;
    if (isShown) this.setText("words", words);
    this.hidden = !isShown;
  }
}

/** The account: what the key may do and how much of it is used, and the button that forgets it. */
class Account extends CustomElement {
  connectedCallback() {
    this.hidden = !storedKey();
    this.on("click", "open-account", () => import("./account.js").then(({ show }) => show(this)));
    this.on("click", "forget", () => {
      forgetKey();
      location.reload();
    });
  }
}

/** Files dropped beside their target would replace the page. The page's drop target or its input of many files gets them. */
function guardDrops() {
  const isOurs = ({ target, dataTransfer }) => dataTransfer?.types.includes("Files") && !target.closest?.("input[type=file]");
  addEventListener("dragover", (event) => isOurs(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!isOurs(event)) return;
    event.preventDefault();
    const { files } = event.dataTransfer;
    const target = document.querySelector("[data-drops]");
    const input = document.querySelector("main input[type=file][multiple]");
    if (target) target.dispatchEvent(new CustomEvent("fovea-files", { detail: [...files] }));
    else if (input) Object.assign(input, { files }).dispatchEvent(new Event("change", { bubbles: true }));
  });
}

/** Open what a control that is not valid is closed in: the browser sends nothing, and could not say why. */
function showInvalid() {
  addEventListener("invalid", ({ target }) => document.querySelectorAll("details:not([open])").forEach((part) => (part.open = part.contains(target))), { capture: true });
}

/** Open a dialog of the frame, whose module is loaded now. */
const open = (module) => import(module).then((loaded) => loaded.open());

function listenForKeys() {
  addEventListener("keydown", (event) => {
    if (event.key?.toLowerCase() !== "k" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    open("./palette.js");
  });
  document.querySelector('[data-part="open-palette"]')?.addEventListener("click", () => open("./palette.js"));
  document.querySelector('[data-part="open-code"]')?.addEventListener("click", () => open("./api_code.js"));
}

customElements.define("fovea-key", Account);
customElements.define("fovea-theme", Theme);
customElements.define("fovea-outage", Outage);
guardDrops();
showInvalid();
listenForKeys();
const loadTray = () => import("./tray.js");
document.querySelector('[data-part="open-tray"]')?.addEventListener("click", loadTray, { once: true });
document.addEventListener("fovea-job", loadTray, { once: true });
if (wasUsed()) requestIdleCallback(loadTray, { timeout: 2000 });
if (wasUsed() && document.querySelector("fovea-recent-runs")) import("./run_view.js");

