"""Codec of jobs: Redis fields to and from the job on the wire, its request and its answer."""

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final

from fovea.api.job import Job
from fovea.api.problem import PROBLEM_CONTENT_TYPE, problem
from fovea.errors import Cancelled, Fault, FoveaError, by_status
from shared.jobs.queue import Payload, Result

_TIMES: Final = ("created", "started", "finished", "expires")
JOB_FIELDS: Final = ("service", "path", "status", "progress", "note", "fence", "dead", "error", *_TIMES)
"""Fields from which `decode_job` builds a Job."""

REQUEST_FIELDS: Final = ("service", "path", "tenant", "headers", "priority", "tries", "body")
"""Fields from which a worker builds the Payload; without `body` it is in the object store."""

ANSWER_FIELDS: Final = ("answer_status", "answer_type", "answer_headers", "answer", "answer_blob")
"""Fields of the Result; exactly one of the last two is there."""

_BOUNDARY: Final = re.compile(r'(?<=boundary=)("?)([^";, ]+)\1', re.IGNORECASE)  # clients draw one for each sending


def fingerprint(payload: Payload) -> str:
    """Digest of what makes a request the same request, for idempotency keys; trace ids and a form's boundary do not."""
    headers = {name.lower(): value for name, value in payload.headers.items()}
    media, body = headers.get("content-type", ""), payload.body
    if media.lower().startswith("multipart/") and (found := _BOUNDARY.search(media)):
        media, body = _BOUNDARY.sub("", media), body.replace(b"--" + found[2].encode("latin-1"), b"--")
    parts = [payload.service, payload.path, media, headers.get("accept", "")]
    return sha256(json.dumps(parts).encode() + body).hexdigest()


def size_of(payload: Payload) -> int:
    """Bytes that a request takes, wherever it is stored."""
    return len(payload.body) + len(payload.path) + sum(len(n) + len(v) for n, v in payload.headers.items())


def encode_request(payload: Payload, inline: bool) -> list[str | bytes]:
    """Names and values of a new job's request; the body only where it is kept in Redis."""
    fields = {"path": payload.path, "headers": json.dumps(dict(payload.headers)), "priority": str(payload.priority)}
    named: list[str | bytes] = [part for field in fields.items() for part in field]
    return [*named, "body", payload.body] if inline else named


def decode_job(job_id: str, rank: int, values: Sequence[bytes | None]) -> Job:
    """The job as callers see it, from the `JOB_FIELDS` fields and its rank in the queue (−1: not queued)."""
    row = _decode_row(JOB_FIELDS, values)
    times: dict[str, Any] = {name: _timestamp(row[name]) for name in _TIMES}
    times["created"] = times["created"] or datetime.now(UTC)
    return Job(
        id=job_id,
        **{name: row[name] for name in ("service", "path", "status", "note")},
        progress=float(row["progress"] or 0),
        position=rank if rank >= 0 else None,
        attempts=int(row["fence"] or 0),
        dead=row["dead"] is not None,
        error=_decode_problem(row["error"]) if row["status"] == "failed" else None,
        **times,
    )


def decode_answer(values: Sequence[bytes | None], body: bytes) -> Result:
    """The stored answer, from the `ANSWER_FIELDS` fields and its body."""
    row = _decode_row(ANSWER_FIELDS[:3], values)
    return Result(int(row["answer_status"]), row["answer_type"], body, json.loads(row["answer_headers"] or "{}"))


def encode_answer(result: Result) -> list[str | bytes | int]:
    """Names and values of an answer, without its body."""
    headers = json.dumps(dict(result.headers))
    return ["answer_status", result.status, "answer_type", result.content_type, "answer_headers", headers]


def build_problem_answer(job: Job) -> Result:
    """The answer of a failed or cancelled job that stored none: the problem that says why."""
    if job.status == "cancelled":
        body: Mapping[str, Any] = json.loads(encode_problem(Cancelled("The job was cancelled.")))
    else:
        body = job.error or _decode_problem(None)
    return Result(int(body["status"]), PROBLEM_CONTENT_TYPE, json.dumps(body).encode())


def get_status(outcome: Result | BaseException) -> int:
    """The HTTP status of an attempt's outcome; 499 for one that was stopped."""
    if isinstance(outcome, (Result, FoveaError)):
        return outcome.status
    return Cancelled.status if isinstance(outcome, asyncio.CancelledError) else Fault.status


def encode_problem(outcome: Result | BaseException, request_id: str | None = None) -> str:
    """The problem to store for a failure; an unexpected exception becomes a `Fault`."""
    if isinstance(outcome, Result):
        return _problem_of_answer(outcome)
    known = outcome if isinstance(outcome, FoveaError) else Fault("The job failed unexpectedly.", hint="See the log.")
    return problem(known, request_id).model_dump_json(exclude_none=True)


def _problem_of_answer(result: Result) -> str:
    """The problem of an error answer; other forms of error (OpenAI's, Open Inference's) become its detail."""
    try:
        body = json.loads(result.body)
    except ValueError:
        body = None
    if isinstance(body, dict) and {"title", "status", "detail", "code"} <= body.keys():
        return json.dumps(body)
    error = body.get("error") if isinstance(body, dict) else None
    detail = error.get("message") if isinstance(error, dict) else error
    return encode_problem(by_status(result.status)(str(detail or f"The service answered {result.status}.")))


def _decode_problem(stored: str | None) -> dict[str, Any]:
    lost = Fault("The worker died while it ran this job, each time.", hint="Retry it, with a smaller input if you can.")
    return dict(json.loads(stored or encode_problem(lost)))


def _decode_row(names: Sequence[str], values: Sequence[bytes | None]) -> dict[str, Any]:
    return {
        name: None if value is None else value.decode() for name, value in zip(names, values[: len(names)], strict=True)
    }


def _timestamp(milliseconds: str | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(int(milliseconds) / 1000, UTC)
