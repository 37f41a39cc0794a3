/**
 * Sends a request, at once or as a job, and follows the job to its end.
 */

import { noteServerTime } from "./eta.js";
import { call, events, noteUse, Problem } from "./gateway.js";

export const FINAL = new Set(["succeeded", "failed", "cancelled"]);

const RESUME_MS = 1000;

/** Statuses after which it helps nothing to ask for a job again. */
const REFUSALS = new Set([400, 401, 403, 404, 410, 422]);

export const jobs = {
  list: async (most = 50) => {
    const response = await call(`/v1/jobs?limit=${most}`);
    noteServerTime(response.headers.get("date"));
    return (await response.json()).jobs;
  },
  cancel: (id) => call(`/v1/jobs/${encodeURIComponent(id)}/cancel`, { method: "POST" }),
  remove: (id) => call(`/v1/jobs/${encodeURIComponent(id)}`, { method: "DELETE" }),
  retry: (id) => call(`/v1/jobs/${encodeURIComponent(id)}/retry`, { method: "POST" }),
  result: (id) => call(`/v1/jobs/${encodeURIComponent(id)}/result`),

  /** The job now and after every change, until it is final; a broken stream, or connection, is resumed. */
  async *follow(id, signal) {
    for (;;) {
      try {
        const response = await call(`/v1/jobs/${encodeURIComponent(id)}/events`, { signal, headers: { Accept: "text/event-stream" } });
        for await (const data of events(response)) {
          const job = JSON.parse(data);
          yield job;
          if (FINAL.has(job.status)) return;
        }
      } catch (problem) {
        if (signal?.aborted || REFUSALS.has(problem.status)) throw problem;
      }
      await new Promise((resolve) => setTimeout(resolve, RESUME_MS));
    }
  },
};

/** The state of a job as text. */
export function jobNote(job) {
  if (job.status === "queued") return job.position ? `Queued, ${job.position} ahead` : "Queued";
  return job.note ?? { running: "Running", succeeded: "Done", failed: "Failed", cancelled: "Cancelled" }[job.status];
}

/**
 * The answer of `POST path`. With `asJob`, or where the service queues it because it takes long, it is a job; then
 * `onJob` is called with every change, and an abort cancels the job.
 */
export async function submit(path, { asJob, onJob, signal, ...request }) {
  const headers = { ...request.headers, ...(asJob ? { Prefer: "respond-async" } : {}) };
  const answer = await call(path, { method: "POST", ...request, headers, ...(asJob ? {} : { signal }) });
  if (answer.status !== 202) return answer;
  let job = await answer.json();
  const cancel = () => jobs.cancel(job.id).catch(() => {});
  if (signal?.aborted) cancel(); // it was stopped before it had a number
  signal?.throwIfAborted();
  signal?.addEventListener("abort", cancel, { once: true });
  onJob?.(job);
  noteUse();
  document.dispatchEvent(new Event("fovea-job"));
  for await (job of jobs.follow(job.id, signal)) onJob?.(job);
  signal?.removeEventListener("abort", cancel);
  if (job.status === "failed") throw new Problem(job.error?.status ?? 500, job.error);
  if (job.status === "cancelled") throw new Problem(0, { title: "Cancelled", detail: "The job was cancelled on another page, or by another program." });
  return jobs.result(job.id);
}

/** Requests that a model's service answers or keeps waiting besides this one; null where nobody knows. */
export async function countOthers(model) {
  const [models, ready] = await Promise.all([call("/v1/models"), fetch("/readyz")].map(async (answer) => (await answer).json()));
  const service = models.data?.find(({ id }) => id === model)?.service;
  const requests = ready.services?.[service]?.requests;
  return requests === undefined ? null : Math.max(0, requests - 1);
}
