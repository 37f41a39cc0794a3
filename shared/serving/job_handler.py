"""Job handler: replays a job's request against the service's own ASGI app, in process.

The app is imported and started at the first job, so an idle worker holds no model.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from shared.jobs.queue import Payload, Result, Ticket
from shared.telemetry import context, is_tracing, log

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from shared.registry.servable import CallContext

_LOAD_POLL_S = 0.25
"""Time between two looks at whether the models are loaded."""

_TRANSFER_HEADERS = frozenset(
    {b"content-length", b"content-type", b"connection", b"date", b"server", b"transfer-encoding"}
)
"""Response headers of one transfer, or with a field of their own in `Result`."""


class AsgiJobHandler:
    """Runs jobs on the app that `load` returns. `close` it in the loop that runs it."""

    def __init__(self, load: Callable[[], Starlette]) -> None:
        """Nothing is loaded before the first job; `load` is called off the loop."""
        self._load = load
        self._starting: asyncio.Task[Starlette] | None = None
        self._lifespan: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()

    async def __call__(self, payload: Payload, ticket: Ticket) -> Result:
        """The app's answer to the request; streams are collected whole. See `shared.jobs.queue.Handler`."""
        app = await self._get_app(ticket)
        run = _call_context(ticket, payload.tenant)
        call = _AsgiCall(payload, run)
        watcher = asyncio.create_task(_cancel_with(ticket, run, call))
        try:
            await app(call.scope, call.receive, call.send)
        finally:
            watcher.cancel()
            run.cancel()
        return call.result()

    async def close(self) -> None:
        """Stop the app, if it was started."""
        self._closing.set()
        for task in (self._starting, self._lifespan):
            if task is not None:
                await asyncio.wait({task})

    async def _get_app(self, ticket: Ticket) -> Starlette:
        if self._starting is None or (self._starting.done() and self._starting.exception()):
            self._starting = asyncio.create_task(self._start())
        if not self._starting.done():
            await ticket.progress(0.0, "loading the models")
        # Shielded: a job that is cancelled meanwhile must not stop the start that others wait for.
        return await asyncio.shield(self._starting)

    async def _start(self) -> Starlette:
        app = await asyncio.to_thread(self._load)
        up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lifespan = asyncio.create_task(self._run_lifespan(app, up))
        await up
        while await _is_loading(app) and not self._closing.is_set():  # noqa: ASYNC110  (the app has no event to wait for)
            await asyncio.sleep(_LOAD_POLL_S)
        return app

    async def _run_lifespan(self, app: Starlette, up: asyncio.Future[None]) -> None:
        """Enter and leave the app's lifespan in one task, as its cancel scopes demand."""
        try:
            async with app.router.lifespan_context(app):
                up.set_result(None)
                await self._closing.wait()
        except Exception as error:  # noqa: BLE001  (raised again in whoever waits for `up`)
            if up.done():
                log("jobs").exception("the app did not stop cleanly")
            else:
                up.set_exception(error)


class _AsgiCall:
    """One request as an ASGI server would make it, and its response."""

    def __init__(self, payload: Payload, run: CallContext | None) -> None:
        path, _, query = payload.path.partition("?")
        headers = {name.lower(): value for name, value in payload.headers.items()}
        # A job has all the time it needs: the caller's deadline was for the 202.
        headers.pop("x-fovea-deadline-ms", None)
        headers["content-length"] = str(len(payload.body))
        if is_tracing():
            headers["traceparent"] = context().traceparent
        self.scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": unquote(path),
            "raw_path": path.encode("latin-1", "replace"),
            "query_string": query.encode("latin-1", "replace"),
            "root_path": "",
            "headers": [(n.encode("latin-1"), v.encode("latin-1")) for n, v in headers.items()],
            "client": ("127.0.0.1", 0),
            "server": ("127.0.0.1", 0),
            "state": {},
        }
        if run is not None:
            self.scope["fovea.run"] = run
        self.disconnected = asyncio.Event()
        self._body: bytes | None = payload.body
        self._status = 500
        self._headers: list[tuple[bytes, bytes]] = []
        self._chunks: list[bytes] = []

    async def receive(self) -> dict[str, Any]:
        """The body in one piece, then, when the job is cancelled, a disconnect."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        """Collect the response."""
        if message["type"] == "http.response.start":
            self._status, self._headers = message["status"], list(message.get("headers", ()))
        elif message["type"] == "http.response.body":
            self._chunks.append(message.get("body", b""))

    def result(self) -> Result:
        """The response as the caller would have had it."""
        content_types = [value.decode("latin-1") for name, value in self._headers if name.lower() == b"content-type"]
        headers = {
            n.decode("latin-1"): v.decode("latin-1") for n, v in self._headers if n.lower() not in _TRANSFER_HEADERS
        }
        return Result(self._status, (content_types or ["application/octet-stream"])[0], b"".join(self._chunks), headers)


def _call_context(ticket: Ticket, tenant: str) -> CallContext:
    """The job's CallContext: progress from any thread goes to the ticket."""
    # Imported at the first job: it brings numpy, which an idle worker does without.
    from shared.registry.servable import CallContext  # noqa: PLC0415

    loop = asyncio.get_running_loop()

    def report(fraction: float, note: str | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: this process is going
            asyncio.run_coroutine_threadsafe(ticket.progress(fraction, note), loop)

    return CallContext(report=report, job=ticket.id, tenant=tenant)


async def _cancel_with(ticket: Ticket, run: CallContext, call: _AsgiCall) -> None:
    await ticket.wait_until_cancelled()
    run.cancel()
    call.disconnected.set()


async def _is_loading(app: Starlette) -> bool:
    """Whether any model is still loading, as the app's own `/v1/models` says; apps without it are ready."""
    call = _AsgiCall(Payload("", "/v1/models", b""), None)
    call.scope["method"], call.scope["fovea.is_probe"] = "GET", True
    await app(call.scope, call.receive, call.send)
    answer = call.result()
    if answer.status != 200:
        return False
    return any(model.get("state") in {"waiting", "loading"} for model in json.loads(answer.body).get("data", ()))
