"""A `Handler` that replays a job's request against a service's own ASGI app, in process.

The app is imported and started at the first job, so an idle worker holds no model. Knows ASGI; knows nothing about
queues, or what the app does with a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from shared.jobs.queue import Payload, Result, Ticket
from shared.telemetry import log

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from shared.registry.servable import CallContext

__all__ = ["AsgiJobHandler"]

_LOOK_S = 0.25
"""Between two looks at whether the models are loaded."""

_NOT_KEPT = frozenset({b"content-length", b"content-type", b"connection", b"date", b"server", b"transfer-encoding"})
"""Answer headers that belong to one transfer, or have a place of their own in `Result`."""


class AsgiJobHandler:
    """Runs jobs on the app that `load` returns. `close` it in the loop that runs it."""

    def __init__(self, load: Callable[[], Starlette]) -> None:
        """Nothing is loaded before the first job; `load` is called off the loop."""
        self._load = load
        self._starting: asyncio.Task[Starlette] | None = None
        self._living: asyncio.Task[None] | None = None
        self._over = asyncio.Event()

    async def __call__(self, payload: Payload, ticket: Ticket) -> Result:
        """The app's answer to the request; streams are collected whole. See `shared.jobs.queue.Handler`."""
        app = await self._started(ticket)
        run = _run(ticket)
        call = _Call(payload, run)
        stopping = asyncio.create_task(_stop_with(ticket, run, call))
        try:
            await app(call.scope, call.receive, call.send)
        finally:
            stopping.cancel()
            run.cancel()
        return call.result()

    async def close(self) -> None:
        """Stop the app, if it was started."""
        self._over.set()
        for task in (self._starting, self._living):
            if task is not None:
                await asyncio.wait({task})

    async def _started(self, ticket: Ticket) -> Starlette:
        if self._starting is None or (self._starting.done() and self._starting.exception()):
            self._starting = asyncio.create_task(self._start())
        if not self._starting.done():
            await ticket.progress(0.0, "loading the models")
        # Shielded: a job that is cancelled meanwhile must not stop the start that others wait for.
        return await asyncio.shield(self._starting)

    async def _start(self) -> Starlette:
        app = await asyncio.to_thread(self._load)
        up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._living = asyncio.create_task(self._live(app, up))
        await up
        while await _loading(app) and not self._over.is_set():  # noqa: ASYNC110  (the app has no event to wait for)
            await asyncio.sleep(_LOOK_S)
        return app

    async def _live(self, app: Starlette, up: asyncio.Future[None]) -> None:
        """Enter and leave the app's lifespan in one task, as its cancel scopes demand."""
        try:
            async with app.router.lifespan_context(app):
                up.set_result(None)
                await self._over.wait()
        except Exception as error:  # noqa: BLE001  (raised again in whoever waits for `up`)
            if up.done():
                log("jobs").exception("the app did not stop cleanly")
            else:
                up.set_exception(error)


class _Call:
    """One request as an ASGI server would make it, and its answer."""

    def __init__(self, payload: Payload, run: CallContext | None) -> None:
        path, _, query = payload.path.partition("?")
        headers = {name.lower(): value for name, value in payload.headers.items()}
        # A job has all the time it needs: the caller's deadline was for the 202.
        headers.pop("x-fovea-deadline-ms", None)
        headers["content-length"] = str(len(payload.body))
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
        self.gone = asyncio.Event()
        self._body: bytes | None = payload.body
        self._status = 500
        self._headers: list[tuple[bytes, bytes]] = []
        self._pieces: list[bytes] = []

    async def receive(self) -> dict[str, Any]:
        """The body in one piece, then, when the job is cancelled, the caller's going away."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        """Collect the answer."""
        if message["type"] == "http.response.start":
            self._status, self._headers = message["status"], list(message.get("headers", ()))
        elif message["type"] == "http.response.body":
            self._pieces.append(message.get("body", b""))

    def result(self) -> Result:
        """The answer as the caller would have had it."""
        kinds = [value.decode("latin-1") for name, value in self._headers if name.lower() == b"content-type"]
        kept = {n.decode("latin-1"): v.decode("latin-1") for n, v in self._headers if n.lower() not in _NOT_KEPT}
        return Result(self._status, (kinds or ["application/octet-stream"])[0], b"".join(self._pieces), kept)


def _run(ticket: Ticket) -> CallContext:
    """The job's Run: its progress goes from whatever thread reports it to the ticket."""
    # Imported at the first job: it brings numpy, which an idle worker does without.
    from shared.registry.servable import CallContext  # noqa: PLC0415

    loop = asyncio.get_running_loop()

    def report(fraction: float, note: str | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: this process is going
            asyncio.run_coroutine_threadsafe(ticket.progress(fraction, note), loop)

    return CallContext(report=report, job=ticket.id)


async def _stop_with(ticket: Ticket, run: CallContext, call: _Call) -> None:
    await ticket.wait_until_cancelled()
    run.cancel()
    call.gone.set()


async def _loading(app: Starlette) -> bool:
    """Whether any model is still on its way, as the app's own `/v1/models` says; apps without it are ready."""
    call = _Call(Payload("", "/v1/models", b""), None)
    call.scope["method"] = "GET"
    await app(call.scope, call.receive, call.send)
    answer = call.result()
    if answer.status != 200:
        return False
    return any(model.get("state") in {"waiting", "loading"} for model in json.loads(answer.body).get("data", ()))
