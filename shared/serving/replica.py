"""One running replica of a service: its app under uvicorn, its gRPC front, its record in Redis and, if asked, its jobs.

The same class runs in a process of its own, in a Ray actor and in tests. Knows nothing about who started it.
"""

import asyncio
import contextlib
import faulthandler
import importlib
import importlib.util
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from fovea.api.replica import RENEW_S, ReplicaRecord, route_fields
from shared.registry.discovery import service_package
from shared.rpc.joined_writes import JoinedWritesProtocol
from shared.serving.auth_guard import GatewayOnlyMiddleware
from shared.serving.build_app import build
from shared.serving.drain import DrainFiles
from shared.serving.heartbeat import MAX_TROUBLE, Heartbeat
from shared.serving.host import Host
from shared.serving.jobs.embedded import EmbeddedJobs
from shared.serving.memory_guard import EXIT_STATUS, MemoryGuard, build_guard, read_resident_bytes
from shared.serving.metrics_server import MetricsServer
from shared.serving.oip.grpc import serve_grpc
from shared.serving.watchdog import EXIT_STATUS as STUCK_STATUS
from shared.serving.watchdog import LoopTimer, Watchdog, bound_memory
from shared.serving.watched_work import WatchedExecutor
from shared.settings import Settings
from shared.telemetry import log

# Longer than any client keeps an idle connection, so that it is never we who close one that is about to be used.
_KEEP_ALIVE_S = 75
_DRAIN_POLL_S = 0.2  # between two looks whether somebody asks to drain, and whether something is in flight
# Where every service answers: the gateway does so itself, or routes by the model's name.
_EVERYWHERE = ("/v2", "/v1/models", "/livez", "/readyz", "/health", "/version", "/metrics")


def load_app(service: str, where: str | None = None) -> FastAPI:
    """The app of a service: at `where` (`module:name`), in its `app.py`, or a plain one where it has no such file."""
    module, _, name = (where or f"{service_package(service)}.app:app").partition(":")
    if where is None and importlib.util.find_spec(module) is None:
        return build(service)
    app: FastAPI = getattr(importlib.import_module(module), name)
    return app


class ReplicaServer:
    """Serves an app until told to stop. `start` and `stop` belong to one event loop."""

    def __init__(
        self,
        app: FastAPI,
        settings: Settings,
        *,
        http_port: int = 0,
        grpc_port: int = 0,
        before_withdrawal: Callable[[], Awaitable[None]] | None = None,
        owns_process: bool = False,
    ) -> None:
        """Prepare to serve on `settings.replica_host`, REST and Open Inference; port 0 takes a free one.

        One that is asked to drain awaits `before_withdrawal` before it withdraws its record. One that `owns_process`
        may end the process that it is in, and bound its memory.
        """
        self._before_withdrawal = before_withdrawal
        self.host: Host = app.state.host
        self.id = secrets.token_hex(6)
        self.http = ""
        self.grpc: str | None = None
        self._app = app
        self._settings = settings
        self._reached_at = settings.replica_advertised_host or settings.replica_host
        self._ports = (http_port, grpc_port)
        self._grpc: Any = None
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self._presence: Heartbeat | None = None
        self._metrics = MetricsServer(settings.replica_host, settings.metrics_port)
        self._files = DrainFiles(settings.data_dir, self.id)
        self._draining: asyncio.Task[None] | None = None
        self._routes: dict[str, tuple[str, ...]] = {}
        self._guard: MemoryGuard | None = None
        self._watchdog = Watchdog(self.host.find_trouble, self._give_up) if owns_process else None
        self._loop_timer = LoopTimer()
        self._jobs: EmbeddedJobs | None = None

    async def start(self) -> None:
        """Listen, load the models in the background, and make the replica known. Raises OSError: a port is in use."""
        listener = _listen(self._settings.replica_host, self._ports[0])
        asyncio.get_running_loop().set_default_executor(WatchedExecutor(self.host.work))
        self.http = f"http://{_address(self._reached_at, listener.getsockname()[1])}"
        self._server = _Server(_config(GatewayOnlyMiddleware(self._app, self._settings), self._settings))
        self._serving = asyncio.create_task(self._server.serve([listener]))
        while not self._server.started:
            if self._serving.done():
                self._serving.result()
            await asyncio.sleep(0.005)
        self._grpc, port = await serve_grpc(self.host, self._settings.replica_host, self._ports[1], self._settings)
        self.grpc = _address(self._reached_at, port)
        self._routes = route_fields(self._app.openapi(), _is_own)
        if self._settings.redis_url:
            self._presence = Heartbeat(self._settings.redis_url, self.record)
            self._presence.start()
            self._files.create()
            self._draining = asyncio.create_task(self._drain_when_asked())
            if self._settings.jobs_in_replica and not self._settings.service_version:  # they are the stable version's
                self._jobs = EmbeddedJobs(self._settings.redis_url, self.host, self._settings)
                self._jobs.start()
        self._metrics.start()
        self._guard = build_guard(self._settings, self._die_of_memory)
        if self._watchdog is not None:
            bound_memory(self._guard.limit)
            self._watchdog.start()
            self._loop_timer.start()

    async def stop(self) -> None:
        """Withdraw the record, finish what has begun for up to `shutdown_grace_s`, then free the models."""
        if self._guard is not None:
            self._guard.stop()
        if self._watchdog is not None:
            self._watchdog.stop()
            self._loop_timer.stop()
        await self._metrics.stop()
        if self._draining is not None:
            self._draining.cancel()
            await asyncio.wait([self._draining])
        if self._presence is not None:
            await self._presence.stop()
            await asyncio.sleep(min(RENEW_S, self._settings.shutdown_grace_s))  # the gateway hears of it
        begun = time.monotonic()
        if self._jobs is not None:
            await self._jobs.stop()  # first: jobs of other routes than tasks are requests to our own server
        if self._grpc is not None:
            await self._grpc.stop(self._left(begun))
        if self._server is not None and self._serving is not None:
            self._server.config.timeout_graceful_shutdown = max(1, round(self._left(begun)))
            self._server.should_exit = True
            await self._serving
        self._files.remove()

    def _left(self, begun: float) -> float:
        return max(0.0, self._settings.shutdown_grace_s - (time.monotonic() - begun))

    @property
    def in_flight(self) -> int:
        """Requests that are being served, streams and jobs included."""
        over_http = len(self._server.server_state.tasks) if self._server is not None else 0
        jobs = self._jobs.busy if self._jobs is not None else 0
        return max(over_http, self.host.busy, jobs)

    @property
    def alive(self) -> bool:
        """Whether it serves."""
        return self._serving is not None and not self._serving.done()

    def record(self) -> ReplicaRecord:
        """Record for the gateway."""
        return ReplicaRecord(
            id=self.id, service=self.host.service, http=self.http, grpc=self.grpc, pid=os.getpid(),
            ready=self.host.settled, models=tuple(self.host.names()), slots=self.host.places,
            version=self._settings.service_version, memory=round(self._guard.share, 3) if self._guard else 0.0,
            trouble=self._describe_trouble(), seen=time.time(), **self._routes,
        )  # fmt: skip

    def _describe_trouble(self) -> str:
        if self.host.is_loading or self.host.settled:
            return ""
        return " ".join(f"{name}: {reason}" for name, reason in self.host.missing().items())[:MAX_TROUBLE]

    async def _drain_when_asked(self) -> None:
        """Withdraw when somebody asks this machine's replicas to drain, and report it once nothing is in flight."""
        await _poll_until(self._files.is_requested)
        log().info("draining", service=self.host.service)
        if self._jobs is not None:
            self._jobs.stop_taking()
        if self._before_withdrawal is not None:
            await self._before_withdrawal()
        if self._presence is not None:
            await self._presence.withdraw()
        await asyncio.sleep(RENEW_S)  # the gateway hears of it
        await _poll_until(lambda: not self.in_flight)
        self._files.remove()

    def _die_of_memory(self) -> None:
        """Tell the gateway why, and end: what runs here must not be tried again on another replica."""
        limit = self._guard.limit if self._guard else 0
        taken = read_resident_bytes()
        told = f"It outgrew its memory ({taken:,} of {limit:,} bytes; FOVEA_REPLICA_MEMORY_BYTES)."
        if taken <= limit:
            told = f"Replicas take more memory than this machine has for all of them; this is the largest ({taken:,})."
        log().error("out of memory: this replica ends itself", reason=told, service=self.host.service, replica=self.id)
        if self._jobs is not None:
            self._jobs.fail_all()
        if self._presence is not None:
            last = {"out_of_memory": True, "ready": False, "trouble": told}
            self._presence.announce_last(self.record().model_copy(update=last))
        os._exit(EXIT_STATUS)

    def _give_up(self, trouble: str) -> None:
        """End a process that is stuck, after whoever else is in it has had its time."""
        log().error("this replica ends itself", reason=trouble, service=self.host.service, replica=self.id)
        faulthandler.dump_traceback(file=2)
        if self._presence is not None:
            last = {"ready": False, "trouble": f"It was stuck and ended itself: {trouble}"}
            self._presence.announce_last(self.record().model_copy(update=last))
        os._exit(STUCK_STATUS)


async def _poll_until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # neither files nor uvicorn's tasks tell of a change
        await asyncio.sleep(_DRAIN_POLL_S)


class _Server(uvicorn.Server):
    """Uvicorn, leaving signals to whoever owns the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app, http=JoinedWritesProtocol, lifespan="on", log_config=None, log_level="warning", access_log=False,
        server_header=False, timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_grace_s)),
    )  # fmt: skip


def _listen(bind: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((bind, port))
    except OSError:
        listener.close()
        raise
    return listener


def _address(bind: str, port: int) -> str:
    """host:port at which others reach us; a replica bound to all addresses is named by its own."""
    name = socket.gethostbyname(socket.gethostname()) if bind in {"0.0.0.0", "::"} else bind  # noqa: S104  # compared
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"


def _is_own(path: str) -> bool:
    """Whether the gateway may route by this path: not one that every service answers."""
    return path == "/v2/rerank" or not path.startswith(_EVERYWHERE)
