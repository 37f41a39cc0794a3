/** Facts of the reader's key: its tenant, scopes, and how much of its limits is used. */

import { createNode } from "./custom_element.js";
import { call } from "./gateway.js";

const formatWait = (seconds) => (seconds < 90 ? `${Math.round(seconds)} s` : seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`);

/** How much of a limit is used, in words. */
export const describeUse = ({ unit, limit, used }) => `${used.toLocaleString("en")} of ${limit.toLocaleString("en")} ${unit}`;

/** Fill the account's popover. */
export async function show(account) {
  try {
    const { tenant, key, scopes, limits } = await (await call("/v1/usage/limits")).json();
    const used = limits.flatMap((one) => [describeUse(one) + (one.used ? `, new in ${formatWait(one.resets_in_s)}` : ""), createNode("br", "")]);
    const rows = { Tenant: [tenant], Key: [key], Scopes: [scopes.join(", ")], Used: used.length ? used.slice(0, -1) : ["No limits"] };
    account.part("facts").replaceChildren(...Object.entries(rows).flatMap(([name, nodes]) => [createNode("dt", "", name), createNode("dd", "figures", ...nodes)]));
    account.setText("forget", key.startsWith("oidc:") ? "Sign out" : "Forget key");
    account.setText("account-fault", "");
  } catch (problem) {
    account.setText("account-fault", problem.message);
  }
}
