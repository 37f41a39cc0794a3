"""Host handler: runs jobs on the host of this process, without HTTP.

A task (`POST /v1/segment`, `/v1/detect` …) needs the host only. Jobs for routes with a protocol of their own (chats,
experiments, studies) go to the replicas of the service.
"""

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from urllib.parse import unquote

from starlette.datastructures import Headers, QueryParams
from starlette.responses import Response, StreamingResponse

from fovea.api.replica import SCOPES_HEADER
from shared import telemetry
from shared.asgi.body import BoundedBody, Inflater, Message, read_coding
from shared.asgi.json_bounds import PartsCounter
from shared.asgi.shell import ObservedRequest
from shared.jobs.queue import Handler, Payload, Result, Ticket
from shared.registry import CallContext
from shared.serving.host import Host
from shared.serving.http.error_rendering import render, translate
from shared.serving.http.middleware import build_facts_headers, log_refusal, observe_outcome
from shared.serving.http.request_parsing import JobRequest
from shared.serving.http.task_routes import answer_task, find_task


class HostJobHandler:
    """Runs jobs of tasks on a host; all others go to `others`."""

    def __init__(self, host: Host, others: Handler) -> None:
        self._host, self._others = host, others

    async def __call__(self, payload: Payload, ticket: Ticket) -> Result:
        """The answer that the same request would have had at once. See `shared.jobs.queue.Handler`."""
        path = unquote(payload.path.partition("?")[0])
        task = find_task(self._host, path)
        if task is None:
            return await self._others(payload, ticket)
        sent = {name.lower(): value for name, value in payload.headers.items()}
        run = self._build_context(payload.tenant, sent, ticket)
        trace = telemetry.fresh_context(sent.get("x-request-id"), telemetry.context().traceparent, self._host.service)
        with ObservedRequest(self._host.service, "POST", path, trace) as observed, _cancelling(ticket, run):
            error = ""
            try:
                response = await answer_task(self._host, task, await self._read(payload, sent), run)
                body = await _collect(response)
            except Exception as raised:  # noqa: BLE001  # whatever is raised becomes an answer, as over HTTP
                failure = translate(raised)
                log_refusal(failure)
                response, error = render({"path": path}, failure), failure.code
                body = bytes(response.body)
            observed.status = response.status_code
            observe_outcome(observed, run, path, error)
            facts = build_facts_headers(trace.request_id, run)
        headers = {**response.headers, **{name.decode(): value.decode("latin-1") for name, value in facts}}
        return Result.of_answer(response.status_code, headers, body)

    def _build_context(self, tenant: str, headers: Mapping[str, str], ticket: Ticket) -> CallContext:
        """The job's context: no deadline, and progress from any thread goes to the ticket."""
        loop = asyncio.get_running_loop()

        def report(fraction: float, note: str | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: this process is going
                asyncio.run_coroutine_threadsafe(ticket.progress(fraction, note), loop)

        run = CallContext(report=report, job=ticket.id, tenant=tenant)
        if SCOPES_HEADER in headers:
            run.scopes = frozenset(headers[SCOPES_HEADER].split(","))
        run.cache_salt = "" if self._host.settings.prefix_cache_shared else tenant
        return run

    async def _read(self, payload: Payload, headers: Mapping[str, str]) -> JobRequest:
        """The request of a job; a compressed body is inflated within the limit."""

        async def receive() -> Message:
            return {"type": "http.request", "body": payload.body}

        settings = self._host.settings
        body = BoundedBody(receive, limit=settings.max_body_bytes, pause_s=settings.body_read_timeout_s)
        if coding := read_coding({name.encode(): value.encode("latin-1") for name, value in headers.items()}):
            body.inflater = Inflater(coding)
        content: bytes = (await body.read())["body"]
        PartsCounter(payload.path, headers.get("content-type", "")).feed(content)
        return JobRequest(Headers(headers), QueryParams(payload.path.partition("?")[2]), content)


@contextlib.contextmanager
def _cancelling(ticket: Ticket, run: CallContext) -> Iterator[None]:
    """Cancel the run when its job is cancelled, and in any case at the end of the block."""

    async def watch() -> None:
        await ticket.wait_until_cancelled()
        run.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()
        run.cancel()


async def _collect(response: Response) -> bytes:
    if not isinstance(response, StreamingResponse):
        return bytes(response.body)
    chunks = [chunk async for chunk in response.body_iterator]
    return b"".join(chunk.encode() if isinstance(chunk, str) else bytes(chunk) for chunk in chunks)
