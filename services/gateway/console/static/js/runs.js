/**
 * The history of runs: in this browser, and for a reader with a key also as files of the tenant on the server
 * (`/v1/files`, purpose `run`), where other devices find them. Pictures stay in the browser; a run has a thumbnail.
 */

import { records } from "./database.js";
import { call, noteUse, storedKey } from "./gateway.js";

const MOST = 200;
const LONGEST_TEXT = 20_000;
const THUMBNAIL = 160;
const PURPOSE = "run";

const local = records("runs");

/** Store a run; returns it with its id. */
export async function store({ file, ...facts }) {
  const { answer, request } = facts;
  const run = {
    id: crypto.randomUUID?.() ?? String(Math.random()).slice(2), time: new Date().toISOString(),
    model: answer?.model ?? request?.model, version: answer?.version, seed: request?.seed ?? answer?.seed,
    ...facts, request: shorten(request), input: file?.name, thumbnail: file && (await drawThumbnail(file)),
  };
  noteUse();
  const kept = [keep({ ...run, answer: shorten(answer, 8_000_000), file })];
  if (storedKey()) kept.push(upload({ ...run, answer: shorten(answer) }));
  const ends = await Promise.allSettled(kept); // a key may lack the scope, and a browser may keep nothing
  if (ends.every(({ status }) => status === "rejected")) throw ends[0].reason;
  return run;
}

/** Keep a run in this browser; if there is no room, the older half of the others goes. */
async function keep(run) {
  await local.put(run).catch(() => prune(0.5).then(() => local.put(run)));
  await prune(MOST);
}

/** Replace the answer of a run that was corrected by hand. */
export async function amend(id, answer) {
  const run = await local.get(id);
  if (!run) return;
  await local.put({ ...run, answer: shorten(answer, 8_000_000) });
  if (!storedKey()) return;
  const old = (await listRemote()).filter((one) => one.id === id);
  const { file, ...facts } = run;
  await upload({ ...facts, answer: shorten(answer) });
  await Promise.all(old.map(({ remote }) => call(`/v1/files/${remote}`, { method: "DELETE" })));
}

/** The newest runs, without their files. */
export async function list() {
  const stored = await local.list().catch((problem) => (storedKey() ? [] : Promise.reject(problem)));
  const mine = stored.map(({ file, ...run }) => run);
  const known = new Set(mine.map(({ id }) => id));
  const others = (await listRemote()).filter(({ id }) => !known.has(id));
  return [...mine, ...others].sort((a, b) => b.time.localeCompare(a.time));
}

/** One run, from this browser or from the server. */
export async function load(id) {
  const found = await local.get(id).catch(() => null);
  if (found) return found;
  const remote = (await listRemote()).find((run) => run.id === id);
  return remote ? (await call(`/v1/files/${remote.remote}/content`)).json() : null;
}

/**
 * A finished job as a run: its answer as JSON (`answer`) or a report (`html`), and its input where this browser sent it.
 * A report that came as JSON is fetched as a page, by the key in its manifest.
 */
export async function loadJob(id) {
  const [job, result, mine] = await Promise.all([
    call(`/v1/jobs/${encodeURIComponent(id)}`).then((answer) => answer.json()),
    call(`/v1/jobs/${encodeURIComponent(id)}/result`), local.list().catch(() => []),
  ]);
  const known = mine.find((run) => run.job === id);
  const type = result.headers.get("content-type") ?? "";
  const isPage = type.startsWith("text/html");
  const answer = type.includes("json") ? await result.json() : undefined;
  const report = answer?.manifest?.report;
  const html = isPage ? await result.text() : report && (await call(`/v1/probe/reports/${report}?format=html`).then((page) => page.text(), () => undefined));
  const request = known?.request ?? { ...answer?.spec, ...((answer?.manifest?.experiment ?? answer?.model) && { model: answer.manifest?.experiment ?? answer.model }) };
  return { file: known?.file, request, milliseconds: new Date(job.finished) - new Date(job.started), path: job.path.split("?")[0], job: id, answer, html };
}

export async function remove(id) {
  await local.remove(id).catch(() => {});
  const remote = (await listRemote()).filter((run) => run.id === id);
  await Promise.all(remote.map((run) => call(`/v1/files/${run.remote}`, { method: "DELETE" })));
}

/** Pin a run, so that it outlives the others, or unpin it. */
export async function pin(id, isPinned) {
  const run = await local.get(id);
  if (run) await local.put({ ...run, isPinned });
}

/** Pinned runs with a report, newest first. */
export const listPinned = async () => (await local.list()).filter(({ isPinned, html }) => isPinned && html).sort((a, b) => b.time.localeCompare(a.time));

/** Remove the oldest runs that are not pinned: all but a number of them, or a share below one. */
async function prune(most) {
  const all = (await local.list()).filter(({ isPinned }) => !isPinned).sort((a, b) => b.time.localeCompare(a.time));
  await Promise.all(all.slice(most < 1 ? all.length * most : most).map(({ id }) => local.remove(id)));
}

/** A stored run's facts are in the name of its file, so that a list needs no content. */
async function upload(run) {
  const body = new FormData();
  const name = [run.id, run.time, run.title, run.model ?? "", run.page].map(encodeURIComponent).join(" ");
  body.append("purpose", PURPOSE);
  body.append("file", new Blob([JSON.stringify(run)], { type: "application/json" }), name.slice(0, 200));
  await call("/v1/files", { method: "POST", body });
  const old = (await listRemote()).slice(MOST);
  await Promise.all(old.map((one) => call(`/v1/files/${one.remote}`, { method: "DELETE" })));
}

async function listRemote() {
  if (!storedKey()) return [];
  const { data } = await call(`/v1/files?purpose=${PURPOSE}`).then((answer) => answer.json()).catch(() => ({ data: [] }));
  return data.flatMap(({ id: remote, filename }) => {
    try {
      const [id, time, title, model, page] = filename.split(" ").map((part) => decodeURIComponent(part));
      return page ? [{ id, time, title, model, page, remote }] : [];
    } catch {
      return []; // another client stored it
    }
  });
}

/** A value in which long texts, such as encoded pictures, are replaced by their length. */
function shorten(value, longest = LONGEST_TEXT) {
  if (value === undefined || value === null) return value;
  const replace = (_, part) => (typeof part === "string" && part.length > longest ? `… ${part.length} characters` : part);
  return JSON.parse(JSON.stringify(value, replace));
}

/** A small JPEG of a picture as a data URL; undefined for anything else. */
async function drawThumbnail(file) {
  const picture = await createImageBitmap(file, { resizeHeight: THUMBNAIL, resizeQuality: "medium" }).catch(() => null);
  if (!picture) return undefined;
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: picture.width, height: picture.height });
  canvas.getContext("2d").drawImage(picture, 0, 0);
  return canvas.toDataURL("image/jpeg", 0.8);
}
