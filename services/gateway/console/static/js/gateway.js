/**
 * Client of the gateway: API key, requests, errors and server-sent events.
 */

const KEY = "fovea-key";

/** Texts that a storage did not take because it is blocked or full: they last as long as the page. */
const unstored = new Map();

/** A text of `localStorage` or `sessionStorage`, or null. */
export function recall(storage, name) {
  try {
    return window[storage].getItem(name) ?? unstored.get(name) ?? null;
  } catch {
    return unstored.get(name) ?? null;
  }
}

/** Keep a text in a storage; null removes it. */
export function retain(storage, name, text) {
  unstored.delete(name);
  try {
    if (text === null) window[storage].removeItem(name);
    else window[storage].setItem(name, text);
  } catch {
    if (text !== null) unstored.set(name, text);
  }
}

/** The API key of this tab or of this device, or null. */
export const storedKey = () => recall("sessionStorage", KEY) ?? recall("localStorage", KEY);

/** Whether this reader may have jobs and runs: on a first visit nothing asks for them. */
export const wasUsed = () => storedKey() !== null || recall("localStorage", "fovea-used") !== null;
export const noteUse = () => retain("localStorage", "fovea-used", "yes");

/** Store a key: in this tab, or with `forGood` on this device. */
export function storeKey(key, forGood = false) {
  forgetKey();
  retain(forGood ? "localStorage" : "sessionStorage", KEY, key);
}

export const forgetKey = () => ["sessionStorage", "localStorage"].forEach((storage) => retain(storage, KEY, null));

/** An error of the gateway, in any of its three formats. */
export class Problem extends Error {
  constructor(status, body, requestId) {
    const inner = typeof body?.error === "object" && body.error !== null ? body.error : {};
    super(body?.detail ?? inner.message ?? (typeof body?.error === "string" ? body.error : `The gateway answered ${status}.`));
    this.name = "Problem";
    this.status = status;
    this.title = body?.title ?? TITLES[status] ?? "The request failed";
    this.hint = body?.hint;
    this.field = body?.field ?? inner.param;
    this.requestId = body?.request_id ?? inner.request_id ?? requestId;
  }
}

const TITLES = {
  400: "Bad input", 401: "Not authenticated", 403: "Not allowed", 404: "Not found", 409: "Conflict", 413: "Too large",
  415: "Not an image", 422: "Invalid option", 429: "Too many requests", 503: "Not ready", 504: "Deadline exceeded",
};

/** Send a request with this tab's key. Throws a `Problem` unless it succeeds. */
export async function call(path, { json, headers = {}, ...rest } = {}) {
  const requestHeaders = new Headers(headers);
  if (storedKey()) requestHeaders.set("Authorization", `Bearer ${storedKey()}`);
  if (json !== undefined) requestHeaders.set("Content-Type", "application/json");
  const body = json === undefined ? rest.body : JSON.stringify(json);
  const response = await fetch(path, { ...rest, headers: requestHeaders, body }).catch(throwUnreachable);
  if (response.ok) return response;
  if (response.status === 503) document.dispatchEvent(new Event("fovea-outage"));
  const problem = await response.json().catch(() => null);
  throw new Problem(response.status, problem, response.headers.get("x-request-id"));
}

function throwUnreachable(error) {
  if (error.name === "AbortError") throw error;
  document.dispatchEvent(new Event("fovea-outage"));
  const hint = "Check your connection and try again. Operators: start Fovea with make run.";
  throw new Problem(0, { title: "No answer", detail: "Can’t reach Fovea.", hint });
}

/** The data of each server-sent event of a response, as text, until the stream ends. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch(throwUnreachable);
      if (done) return;
      const blocks = (rest + value).split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const data = block.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
        if (data.length) yield data.join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
