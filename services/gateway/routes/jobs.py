"""Jobs: queues a request with `Prefer: respond-async`, and serves `/v1/jobs`.

Knows nothing about how jobs are run.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from typing import Annotated, Any
from urllib.parse import unquote

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from starlette.responses import StreamingResponse

from fovea.api.job import Job, JobList
from fovea.errors import FoveaError, InvalidOption, NotReady, QueueFull
from services.gateway.http.errors import SECURITY_HEADERS
from services.gateway.http.openapi import PROBLEMS
from services.gateway.http.request_context import RequestContext, build_response_headers
from services.gateway.policy.caller import find_scope
from services.gateway.proxy.response_relay import format_error_event
from services.gateway.routes.dependencies import HeldAnswer, get_caller, get_queue, require_queue
from shared.jobs.queue import Payload
from shared.jobs.redis_queue import RedisJobQueue
from shared.telemetry import span

EVENT_HEARTBEAT_S = 10.0
"""Seconds between comments in a silent event stream, so that no proxy on the way closes it."""

MAX_FOLLOWED = 256
"""Streams of events that a tenant may have open at one gateway; each asks Redis every two seconds."""

_KEPT_HEADERS = b"content-type content-encoding accept inference-header-content-length tracestate".split()
"""Request headers that a job keeps."""

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=PROBLEMS)

JobId = Annotated[str, Path(description="As in the answer to the POST.", max_length=128)]
Limit = Annotated[int, Query(ge=1, le=500, description="How many at most.")]
After = Annotated[str | None, Query(max_length=128, description="Last id of the page before.")]
Dead = Annotated[bool, Query(description="Only jobs that failed on every attempt.")]


def prefers_async(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether `Prefer`, which may come several times, contains `respond-async` (RFC 7240)."""
    preferences = b",".join(value for name, value in headers if name == b"prefer").lower().replace(b";", b",")
    return any(preference.strip() == b"respond-async" for preference in preferences.split(b","))


async def submit_job(ctx: RequestContext, queue: RedisJobQueue | None, service: str, body: bytes) -> None:
    """Queue a request and answer 202 with the job and where it is.

    Raises:
        NotReady: There is no queue, or it can't be reached.
        QueueFull: Too many jobs wait for the service.
        Conflict: The idempotency key was used for another request.
    """
    headers = {n.decode(): ctx.headers[n].decode("latin-1") for n in _KEPT_HEADERS if n in ctx.headers}
    headers |= ctx.caller.job_headers
    attributes = {
        "messaging.system": "redis", "messaging.operation.type": "send", "messaging.operation.name": "submit",
        "messaging.destination.name": service,
    }  # fmt: skip
    with span(f"send {service}", attributes, kind="producer") as sent:
        headers |= {"x-request-id": ctx.trace.request_id, "traceparent": ctx.traceparent}
        payload = Payload(service, ctx.raw_target, body, headers, tenant=ctx.caller.tenant)
        job, is_new = await require_queue(queue).submit(payload, _read_idempotency_key(ctx))
        sent.set_attributes({"messaging.message.id": job.id})
    answer = job.model_dump_json().encode()
    ctx.status = 202
    response_headers = [
        (b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer)),
        (b"location", f"/v1/jobs/{job.id}".encode()), (b"preference-applied", b"respond-async"),
        *([] if is_new else [(b"idempotency-replayed", b"true")]), *SECURITY_HEADERS, *ctx.extra_headers,
    ]  # fmt: skip
    await ctx.send({"type": "http.response.start", "status": 202, "headers": response_headers})
    await ctx.send({"type": "http.response.body", "body": answer})


@router.get("")
async def recent(request: Request, limit: Limit = 50, dead: Dead = False, after: After = None) -> JobList:
    """The caller's jobs, newest first; with `dead=true` its dead letters."""
    queue, tenant = get_queue(request), get_caller(request).tenant
    found = await (queue.dead if dead else queue.recent)(tenant, limit + 1, after)
    return JobList(jobs=found[:limit], has_more=len(found) > limit)


@router.get("/{job_id}")
async def get(request: Request, job_id: JobId) -> Job:
    """The current state of a job."""
    return await get_queue(request).get(job_id, get_caller(request).tenant)


async def _count_followed(request: Request) -> AsyncGenerator[None, None]:
    """Count a followed job until its stream ends. Raises QueueFull: the tenant follows too many."""
    tenant = get_caller(request).tenant
    followed: Counter[str] = request.app.state.gateway.followed
    if followed[tenant] >= MAX_FOLLOWED:
        detail = f"{MAX_FOLLOWED} jobs of this tenant are followed at a time, which is the limit."
        raise QueueFull(detail, hint="Ask for each job's state instead: GET /v1/jobs/{id}.", retry_after=1)
    followed[tenant] += 1
    try:
        yield
    finally:
        followed -= Counter({tenant: 1})


@router.get(
    "/{job_id}/events", response_class=StreamingResponse, responses={200: {"content": {"text/event-stream": {}}}}
)
async def events(request: Request, job_id: JobId, _: Annotated[None, Depends(_count_followed)]) -> StreamingResponse:
    """The job now and after every change, as server-sent events whose data is the job; ends with its final state.

    A gateway that stops, and a job that is forgotten, end the stream with an error event.
    """
    queue, tenant = get_queue(request), get_caller(request).tenant
    await queue.get(job_id, tenant)
    ctx, is_stopping = request.scope["fovea.request_context"], request.app.state.gateway.is_stopping
    stream = _format_events(ctx, queue.events(job_id, tenant), is_stopping, EVENT_HEARTBEAT_S)
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(stream, media_type="text/event-stream", headers=headers)


@router.get("/{job_id}/result", response_class=Response, responses={200: {"content": {"*/*": {}}}})
async def result(request: Request, job_id: JobId, build: HeldAnswer) -> Response:
    """The answer, byte for byte, with the status that the request itself would have had."""
    answer = await get_queue(request).result(job_id, get_caller(request).tenant)
    raw = build_response_headers((k.encode("latin-1"), v.encode("latin-1")) for k, v in answer.headers.items())
    kept = {k.decode("latin-1"): v.decode("latin-1") for k, v in raw if k != b"content-length"}
    return build(answer.body, answer.status, {**kept, "content-type": answer.content_type})


@router.post("/{job_id}/cancel")
async def cancel(request: Request, job_id: JobId) -> Job:
    """Cancel a job, also while it runs; a finished job is left as it is."""
    return await get_queue(request).cancel(job_id, get_caller(request).tenant)


@router.delete("/{job_id}")
async def delete(request: Request, job_id: JobId) -> Job:
    """Cancel a job that is not over; forget a finished one, with its request and its answer."""
    return await get_queue(request).delete(job_id, get_caller(request).tenant)


@router.post("/{job_id}/retry")
async def retry(request: Request, job_id: JobId) -> Job:
    """Queue a failed, dead or cancelled job again, with the scopes and limits of the key that asks."""
    queue, caller = get_queue(request), get_caller(request)
    job = await queue.get(job_id, caller.tenant)
    caller.require_scope(find_scope(unquote(job.path.partition("?")[0])))
    return await queue.retry(job_id, caller.tenant, caller.job_headers)


async def _format_events(
    ctx: RequestContext, jobs: AsyncIterator[Job], is_stopping: asyncio.Event, heartbeat_s: float
) -> AsyncIterator[bytes]:
    """Format each state of a job as a server-sent event; comments while nothing happens."""
    source = aiter(jobs)
    stop: asyncio.Future[Any] = asyncio.create_task(is_stopping.wait())
    pending: asyncio.Future[Any] | None = None
    try:
        while True:
            pending = pending or asyncio.ensure_future(anext(source))
            done, _ = await asyncio.wait({pending, stop}, timeout=heartbeat_s, return_when=asyncio.FIRST_COMPLETED)
            if stop in done:
                raise NotReady("The gateway is stopping.", hint="Ask for the events again.")
            if not done:
                yield b": still here\n\n"
                continue
            job, pending = pending.result(), None
            yield b"data: %b\n\n" % job.model_dump_json().encode()
    except StopAsyncIteration:
        return
    except FoveaError as error:
        yield format_error_event(ctx, error)
    finally:
        stop.cancel()
        if pending is not None:
            pending.cancel()


def _read_idempotency_key(ctx: RequestContext) -> str | None:
    key = ctx.headers.get(b"idempotency-key")
    if key is None:
        return None
    text = key.decode("latin-1").strip()
    if not 1 <= len(text) <= 255 or not text.isprintable():
        raise InvalidOption("Idempotency-Key must be 1 to 255 printable characters.", field="idempotency-key")
    return text
