"""Jobs replayed against an app in process: the same bytes as over HTTP, with progress and cancel."""

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from shared.errors import Cancelled
from shared.jobs.queue import Payload
from shared.registry import CallContext
from shared.serving.job_handler import AsgiJobHandler


class Ticket:
    id = "j" * 32
    attempt = 1

    def __init__(self) -> None:
        self.told: list[tuple[float, str | None]] = []
        self.stop = asyncio.Event()

    async def progress(self, fraction: float, note: str | None = None) -> None:
        self.told.append((fraction, note))

    async def wait_until_cancelled(self) -> None:
        await self.stop.wait()


async def mirror(request: Request) -> Response:
    body = await request.body()
    facts = {
        "method": request.method, "path": request.url.path, "query": dict(request.query_params),
        "headers": dict(request.headers), "size": len(body), "job": request.scope["fovea.run"].job,
    }  # fmt: skip
    return JSONResponse(facts, 201, {"x-model": "toy", "connection": "close"})


async def steps(request: Request) -> Response:
    run: CallContext = request.scope["fovea.run"]
    assert run.deadline is None, "a job has all the time it needs"

    def work() -> None:
        for step in range(3):
            run.progress(step / 3, f"step {step}")

    await asyncio.to_thread(work)
    return Response(b"ok")


async def long(request: Request) -> Response:
    run: CallContext = request.scope["fovea.run"]
    stopped: threading.Event = request.app.state.stopped

    def work() -> None:
        try:
            while True:
                run.check()
                threading.Event().wait(0.005)
        except Cancelled:
            stopped.set()
            raise

    try:
        await asyncio.to_thread(work)
    except Cancelled as error:
        return JSONResponse({"title": "x"}, error.status)
    return Response()


async def until_disconnect(request: Request) -> Response:
    await request.body()
    while not await request.is_disconnected():  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    return Response(b"saw it")


async def sse(_request: Request) -> Response:
    async def lines() -> AsyncIterator[bytes]:
        for n in range(3):
            yield b"data: %d\n\n" % n

    return StreamingResponse(lines(), media_type="text/event-stream")


def toy(**hooks: Callable[[Starlette], contextlib.AbstractAsyncContextManager[None]]) -> Starlette:
    routes = [mirror, steps, long, until_disconnect, sse]
    app = Starlette(routes=[Route(f"/{route.__name__}", route, methods=["POST"]) for route in routes], **hooks)
    app.state.stopped = threading.Event()
    return app


@contextlib.asynccontextmanager
async def replaying(app: Starlette) -> AsyncIterator[AsgiJobHandler]:
    replay = AsgiJobHandler(lambda: app)
    try:
        yield replay
    finally:
        await asyncio.wait_for(replay.close(), 5)


def post(path: str, body: bytes = b"", **headers: str) -> Payload:
    return Payload("toy", path, body, {name.replace("_", "-"): value for name, value in headers.items()})


async def test_the_app_sees_the_request_as_it_was_sent():
    sent = post(
        "/mirror?a=%C3%BC&b=2", b"x" * 100, Content_Type="image/png", x_fovea_tenant="ann", x_fovea_deadline_ms="5"
    )
    async with replaying(toy()) as replay:
        answer = await replay(sent, Ticket())
    seen = json.loads(answer.body)
    assert (seen["method"], seen["path"], seen["query"]) == ("POST", "/mirror", {"a": "ü", "b": "2"})
    assert seen["headers"] == {"content-type": "image/png", "x-fovea-tenant": "ann", "content-length": "100"}
    assert (seen["size"], seen["job"]) == (100, Ticket.id)
    assert (answer.status, answer.content_type) == (201, "application/json")
    assert answer.headers == {"x-model": "toy"}, "what belongs to one transfer is not kept"


async def test_streams_are_collected():
    async with replaying(toy()) as replay:
        answer = await replay(post("/sse"), Ticket())
    assert answer.body == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"
    assert answer.content_type.startswith("text/event-stream")


async def test_progress_from_a_thread_reaches_the_ticket():
    ticket = Ticket()
    async with replaying(toy()) as replay:
        await replay(post("/steps"), ticket)
        await asyncio.sleep(0.01)
    assert ticket.told[-3:] == [(0.0, "step 0"), (1 / 3, "step 1"), (2 / 3, "step 2")]


async def test_a_cancel_stops_the_work_in_its_thread():
    app, ticket = toy(), Ticket()
    async with replaying(app) as replay:
        running = asyncio.create_task(replay(post("/long"), ticket))
        await asyncio.sleep(0.05)
        assert not running.done()
        ticket.stop.set()
        answer = await asyncio.wait_for(running, 1)
    assert answer.status == 499
    assert app.state.stopped.is_set()


async def test_a_cancel_looks_to_the_app_like_a_caller_who_went_away():
    ticket = Ticket()
    async with replaying(toy()) as replay:
        running = asyncio.create_task(replay(post("/until_disconnect"), ticket))
        await asyncio.sleep(0.05)
        ticket.stop.set()
        assert (await asyncio.wait_for(running, 1)).body == b"saw it"


class Life:
    def __init__(self, failures: int = 0) -> None:
        self.starts = self.stops = 0
        self.failures = failures

    @contextlib.asynccontextmanager
    async def __call__(self, _app: Starlette) -> AsyncIterator[None]:
        self.starts += 1
        if self.starts <= self.failures:
            raise RuntimeError("weights are missing")
        yield
        self.stops += 1


async def test_nothing_is_loaded_before_the_first_job():
    loads = []
    replay = AsgiJobHandler(lambda: loads.append(1) or toy())  # type: ignore[func-returns-value]
    await replay.close()
    assert loads == []


async def test_concurrent_first_jobs_start_the_app_once():
    life = Life()
    async with replaying(toy(lifespan=life)) as replay:
        answers = await asyncio.gather(*(replay(post("/mirror"), Ticket()) for _ in range(8)))
        assert {answer.status for answer in answers} == {201}
        assert (life.starts, life.stops) == (1, 0)
    assert life.stops == 1


async def test_a_failed_start_fails_the_attempt_and_the_next_tries_again():
    life = Life(failures=1)
    async with replaying(toy(lifespan=life)) as replay:
        with pytest.raises(RuntimeError, match="weights"):
            await replay(post("/mirror"), Ticket())
        assert (await replay(post("/mirror"), Ticket())).status == 201


async def test_a_job_that_is_cancelled_during_the_start_does_not_stop_it():
    life = Life()
    held = asyncio.Event()

    @contextlib.asynccontextmanager
    async def slow(app: Starlette) -> AsyncIterator[None]:
        await held.wait()
        async with life(app):
            yield

    async with replaying(toy(lifespan=slow)) as replay:
        first = asyncio.create_task(replay(post("/mirror"), Ticket()))
        second = asyncio.create_task(replay(post("/mirror"), Ticket()))
        await asyncio.sleep(0.02)
        first.cancel()
        held.set()
        assert (await asyncio.wait_for(second, 2)).status == 201
    assert life.starts == 1


async def test_jobs_wait_until_no_model_is_loading():
    states = iter(["waiting", "loading", "failed"])
    asked = []

    async def models(_request: Request) -> Response:
        asked.append(next(states))
        return JSONResponse({"data": [{"id": "a", "state": asked[-1]}, {"id": "b", "state": "ready"}]})

    app, ticket = toy(), Ticket()
    app.router.routes.append(Route("/v1/models", models))
    async with replaying(app) as replay:
        assert (await replay(post("/mirror"), ticket)).status == 201
    assert asked == ["waiting", "loading", "failed"], "a model that failed is as ready as it gets"
    assert ticket.told[0] == (0.0, "loading the models")


def test_an_idle_worker_holds_no_framework_and_no_model():
    look = "import sys, shared.serving.worker; print({'torch', 'numpy', 'fastapi', 'starlette'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "set()"
