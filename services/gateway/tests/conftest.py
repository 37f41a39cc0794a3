"""Real sockets for gateway tests: a small upstream, a gateway in front of it, a queue that keeps its jobs in memory."""

import asyncio
import contextlib
import errno
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import Mock

import grpc
import httpx2
import pytest
import uvicorn
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from fovea.api.replica import ReplicaRecord
from services.gateway.app import build_gateway
from services.gateway.grpc.server import serve_grpc
from services.gateway.policy.auth import KeyRing
from services.gateway.routing.replica import Replica, ServiceState
from services.gateway.server import create_server
from services.gateway.tests.grpc_front import Replica as GrpcReplica
from services.gateway.tests.stage import running
from services.gateway.tests.stub_service import Stub
from shared.settings import Settings

ROUTES = ("/v1/echo", "/v1/stream", "/v1/slow", "/v1/sessions", "/v1/long")


@contextlib.asynccontextmanager
async def listening(made: uvicorn.Server) -> AsyncIterator[str]:
    """A started server's base URL; the server is stopped at the end."""
    made.config.load()
    made.lifespan = made.config.lifespan_class(made.config)
    await made.startup()
    port = made.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await shut_down(made)


async def shut_down(made: uvicorn.Server) -> None:
    """Do what uvicorn's `shutdown` does, less its pause of 0.1 s for connections that are closed at once."""
    state = made.server_state
    getattr(made, "on_stop", bool)()
    for server in made.servers:
        server.close()
    for connection in list(state.connections):
        connection.shutdown()
    end = time.monotonic() + 0.1
    while state.connections and time.monotonic() < end:  # noqa: ASYNC110  # uvicorn has no event for it
        await asyncio.sleep(0.001)
    try:
        await asyncio.wait_for(made._wait_tasks_to_complete(), made.config.timeout_graceful_shutdown)
    except TimeoutError:
        for task in state.tasks:
            task.cancel()
    await made.lifespan.shutdown()


class Live:
    """Answers with the size of each piece of the body as soon as it is there, and keeps nothing."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        more = True
        while more:
            message = await receive()
            more = message.get("more_body", False)
            line = b"%d\n" % len(message.get("body", b""))
            await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


@dataclass
class Toy:
    """An upstream that notes what it was sent. `POST /v1/echo` answers the body back."""

    name: str = "toy"
    seen: list[dict[str, Any]] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    status: int = 200
    chunks: int = 3
    gap_s: float = 0.01
    padding: bytes = b""
    url: str = ""
    documents: dict[str, Any] = field(default_factory=dict)
    extra: list[Route] = field(default_factory=list)

    def app(self) -> Starlette:
        methods = ["GET", "POST", "DELETE", "PUT"]
        return Starlette(
            routes=[
                *self.extra, Route("/v1/stream", self.stream, methods=["POST"]),
                Route("/v1/slow", self.slow, methods=["POST"]), Route("/v1/camera", Live(), methods=["POST"]),
                Route("/v1/models", self.models), Route("/openapi.json", self.openapi),
                Route("/v2/models/stats", self.stats), Route("/v1/long", self.long, methods=["POST"]),
                Route("/{path:path}", self.echo, methods=methods),
            ]
        )  # fmt: skip

    async def long(self, _request: Request) -> Response:
        """A service's refusal of a request that it does only as a job."""
        return Response("This takes long.", 413, {"x-fovea-wants": "respond-async"})

    async def echo(self, request: Request) -> Response:
        body = await request.body()
        url, headers = request.url, dict(request.headers)
        seen = {"method": request.method, "path": url.path, "query": url.query, "headers": headers, "body": body}
        self.seen.append(seen)
        kind = request.headers.get("content-type", "application/octet-stream")
        headers = {"x-replica": self.name, "connection": "keep-alive", "x-toy": "yes"}
        return Response(body, self.status, headers, media_type=kind)

    async def stream(self, request: Request) -> Response:
        await request.body()

        async def pieces() -> AsyncIterator[bytes]:
            try:
                for number in range(self.chunks):
                    yield b"data: %d%b\n\n" % (number, self.padding)
                    await asyncio.sleep(self.gap_s)
            except asyncio.CancelledError:
                self.gone.set()
                raise

        return StreamingResponse(pieces(), media_type="text/event-stream")

    async def slow(self, request: Request) -> Response:
        await request.body()
        for _ in range(200):
            await asyncio.sleep(0.05)
            if await request.is_disconnected():
                self.gone.set()
                break
        return PlainTextResponse("late")

    async def models(self, request: Request) -> Response:
        of_tenant = self.documents.get(f"models of {request.headers.get('x-fovea-tenant')}")
        return JSONResponse(of_tenant or self.documents.get("models", {"object": "list", "data": []}))

    async def stats(self, request: Request) -> Response:
        return JSONResponse(self.documents.get("stats", {}))

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(self.documents.get("openapi", {"paths": {}}))


@dataclass
class Scene:
    app: FastAPI
    url: str
    client: httpx2.AsyncClient
    upstream: Toy | None = None
    known: Replica | None = None
    grpc_port: int = 0

    @property
    def registry(self) -> Any:
        return self.app.state.gateway.registry

    def announce(self, url: str, *, service: str = "svc", name: str = "r1", **facts: Any) -> Replica:
        """Make a replica known as if Redis held its record and never let it go."""
        registry, known = self.registry, {"models": ("pranet",), "effectful": ("/v1/sessions",), "routes": ROUTES}
        where = {"id": name, "service": service, "http": url, "pid": 1, "ready": True, "seen": time.time()}
        record = ReplicaRecord(**{**where, **known, **facts})
        state = registry._services.setdefault(service, ServiceState())
        replica = Replica(record, changed=time.monotonic() + 3600)
        state.replicas[name] = replica
        registry._update_routes()
        return replica


@pytest.fixture
def gateway_settings(tmp_path):
    return Settings(data_dir=tmp_path, http_port=0, grpc_port=0, shutdown_grace_s=1)


@pytest.fixture
def ring(tmp_path):
    return KeyRing(tmp_path / "keys.json")


@pytest.fixture
def read_only_keys(monkeypatch):
    """From its call on the file of keys can not be written."""
    refuse = Mock(side_effect=OSError(errno.EROFS, "Read-only file system"))
    return lambda: monkeypatch.setattr("services.gateway.policy.key_file.replace_reserved", refuse)


@pytest.fixture
async def gateway(gateway_settings):
    """Starts gateways; keyword arguments are settings, `queue` is the job queue."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(queue: Any = None, **changed: Any) -> Scene:
            settings = Settings(**{**gateway_settings.model_dump(exclude_unset=True), **changed})
            app = build_gateway(settings, queue)
            url = await stack.enter_async_context(listening(create_server(app, settings)))
            client = await stack.enter_async_context(httpx2.AsyncClient(base_url=url, timeout=20))
            return Scene(app, url, client)

        yield start


@pytest.fixture
async def toy():
    """Starts upstreams; keyword arguments are the fields of `Toy`."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(**fields: Any) -> Toy:
            made = Toy(**fields)
            config = uvicorn.Config(
                made.app(), port=0, log_config=None, lifespan="off", ws="none", access_log=False,
                timeout_graceful_shutdown=1,
            )  # fmt: skip
            made.url = await stack.enter_async_context(listening(uvicorn.Server(config)))
            return made

        yield start


@pytest.fixture
async def served(gateway, toy):
    """Starts a gateway before one upstream, `scene.upstream`; `fields` are those of `Toy`."""

    async def start(queue: Any = None, fields: dict[str, Any] | None = None, **changed: Any) -> Scene:
        upstream, scene = await toy(**(fields or {})), await gateway(queue, **changed)
        scene.upstream = upstream
        scene.known = scene.announce(upstream.url)
        scene.registry._update_service = lambda *_: None  # Redis has no record of it, and a poll would forget it
        return scene

    return start


@pytest.fixture
async def replica():
    """Starts replicas; returns each with its address and server."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(name: str, port: int = 0) -> tuple[GrpcReplica, str, grpc.aio.Server]:
            made, server = GrpcReplica(name), grpc.aio.server()
            server.add_generic_rpc_handlers((made,))
            taken = server.add_insecure_port(f"127.0.0.1:{port}")
            await server.start()
            stack.push_async_callback(server.stop, None)
            return made, f"127.0.0.1:{taken}", server

        yield start


@pytest.fixture
async def front(gateway):
    """Starts a gateway with its gRPC front; returns the scene and a channel."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(**changed: Any) -> tuple[Any, grpc.aio.Channel]:
            scene = await gateway(**changed)
            server, scene.grpc_port = await serve_grpc(scene.app.state.gateway, "127.0.0.1", 0)
            stack.push_async_callback(server.stop, None)
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{scene.grpc_port}"))
            return scene, channel

        yield start


@pytest.fixture
async def fronted(front, replica):
    """Starts a gateway with its gRPC front and the replica `one` behind it; the scene has that replica, too."""

    async def start(**changed: Any) -> tuple[Any, grpc.aio.Channel]:
        scene, channel = await front(**changed)
        scene.replica, address, scene.server = await replica("one")
        scene.known = scene.announce("http://127.0.0.1:1", name="one", grpc=address)
        return scene, channel

    return start


@pytest.fixture(scope="module")
def stage(request, tmp_path_factory):
    """A gateway in front of a stub service (`SERVICE` of the module), for what a person or a client library sees."""
    stub = getattr(request.module, "SERVICE", Stub)()
    with running(tmp_path_factory.mktemp("gateway"), stub) as made:
        yield made


@pytest.fixture
def url(stage):
    return stage.url
