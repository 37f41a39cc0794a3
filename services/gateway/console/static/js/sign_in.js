/**
 * Sign-in at the organisation's identity provider: authorisation code with PKCE. The verifier and the state stay in this
 * tab; the gateway exchanges the code, so that this page connects nowhere else.
 */

import { call, storeKey } from "./gateway.js";

const STORED = "fovea-sign-in";
const PATH = "/console/sign-in";

const scheme = () => location.protocol.slice(0, -1);
const toBase64Url = (bytes) => btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
const randomText = () => toBase64Url(crypto.getRandomValues(new Uint8Array(32)));

/** Go to the provider; the reader comes back to this page. */
export async function start() {
  if (!crypto.subtle) throw new Error("Signing in needs HTTPS (or this computer). Open Fovea by its https address.");
  const [verifier, state] = [randomText(), randomText()];
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(verifier));
  sessionStorage.setItem(STORED, JSON.stringify({ verifier, state, back: location.pathname === PATH ? "/" : location.href }));
  location.assign(`${PATH}/start?${new URLSearchParams({ state, scheme: scheme(), challenge: toBase64Url(new Uint8Array(digest)) })}`);
}

/** Take the token of a reader who came back, and open the page that was asked for. */
export async function finish() {
  const query = new URLSearchParams(location.search);
  const { verifier, state, back } = JSON.parse(sessionStorage.getItem(STORED) ?? "{}");
  sessionStorage.removeItem(STORED);
  history.replaceState(null, "", PATH); // the code must not stay in the address
  if (query.has("error")) throw new Error(`The identity provider refused: ${query.get("error_description") ?? query.get("error")}.`);
  if (!state || query.get("state") !== state) throw new Error("This sign-in was not started in this tab, or is over. Sign in again.");
  const body = new URLSearchParams({ code: query.get("code") ?? "", verifier });
  const { token } = await (await call(`${PATH}/token?scheme=${scheme()}`, { method: "POST", body })).json();
  storeKey(token);
  location.replace(back);
}
