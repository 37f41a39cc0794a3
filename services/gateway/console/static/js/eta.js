/**
 * When a job will be done or begin, from its progress and from how fast others end. It tells nothing where it knows
 * nothing: at the beginning, when a job stands still for longer than expected, and after what can't be.
 */

const LEAST_PROGRESS = 0.02;
const LEAST_SECONDS = 2;
const MOST_SECONDS = 7 * 86_400;

/** Finished jobs from which a rate is taken, and the seconds in which they must have ended. */
const LEAST_JOBS = 3;
const RECENT_SECONDS = 3600;

const seen = new Map();
let skew = 0;

/** Note how far this clock is from the server's, by the header of an answer. */
export function noteServerTime(text) {
  const time = Date.parse(text);
  if (!Number.isNaN(time)) skew = Date.now() - time;
}

/** Seconds until a running job ends; null where nobody can tell. */
export function estimateEnd(job, now = Date.now() - skew) {
  if (job.status !== "running" || !job.started || !(job.progress >= LEAST_PROGRESS && job.progress < 1)) {
    seen.delete(job.id);
    return null;
  }
  const last = seen.get(job.id);
  const isSame = last?.progress === job.progress && last.started === job.started;
  const mark = isSame ? last : { progress: job.progress, started: job.started, at: now };
  seen.set(job.id, mark);
  const worked = (mark.at - Date.parse(job.started)) / 1000;
  if (worked < LEAST_SECONDS) return null;
  const left = (worked * (1 - job.progress)) / job.progress - (now - mark.at) / 1000;
  return left > 0 && left < MOST_SECONDS ? left : null;
}

/** Seconds until a queued job begins, by the rate at which its service ends jobs; null where nobody can tell. */
export function estimateStart(job, others, now = Date.now() - skew) {
  if (job.status !== "queued" || job.position === null || job.position === undefined) return null;
  const ends = others.filter((one) => one.service === job.service && one.status === "succeeded").map((one) => Date.parse(one.finished)).filter((end) => now - end < RECENT_SECONDS * 1000);
  if (ends.length < LEAST_JOBS) return null;
  const each = (Math.max(...ends) - Math.min(...ends)) / 1000 / (ends.length - 1);
  const wait = each * (job.position + 1);
  return wait > 0 && wait < MOST_SECONDS ? wait : null;
}

/** What is known of the time of a job, in words; empty where nothing is. */
export function describeEta(job, others = []) {
  const [left, wait] = [estimateEnd(job), estimateStart(job, others)];
  if (left !== null) return `about ${formatSeconds(Math.max(1, left))} left`;
  return wait === null ? "" : `starts in about ${formatSeconds(Math.max(1, wait))}`;
}

/** Seconds as `12 s`, `3 min 05 s` or `7 h 14 min`. */
export function formatSeconds(seconds) {
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes} min ${String(whole % 60).padStart(2, "0")} s`;
  return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}
