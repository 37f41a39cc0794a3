"""A gateway on real sockets in a thread of its own, in front of a stub service, with a job queue that forgets.

For tests whose client is synchronous (the SDK, the CLI, a browser) and so can't share a loop with the server.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import httpx2
import structlog
import uvicorn
from fastapi import APIRouter, FastAPI

from fovea.api.job import FINAL, Job
from fovea.errors import Conflict, NotFound
from services.gateway import app as gateway_app
from services.gateway.app import build_gateway
from services.gateway.policy.auth import KeyRing
from services.gateway.server import create_server
from services.gateway.tests.stub_service import Stub
from shared.jobs.queue import Counts, Payload, Result
from shared.serving.build_app import build
from shared.settings import Settings
from tests.harness.serving import run_server
from tests.harness.waiting import wait_until


class KnownDocument(FastAPI):
    """Takes its document from an app of the same routers: to write it is nearly all of what a gateway's start takes."""

    known: ClassVar[dict[tuple[int, ...], tuple[dict[str, Any], list[APIRouter]]]] = {}

    def __init__(self, **facts: Any) -> None:
        self.included: list[APIRouter] = []
        super().__init__(**facts)

    def include_router(self, router: APIRouter, **how: Any) -> None:
        self.included.append(router)
        super().include_router(router, **how)

    def openapi(self) -> dict[str, Any]:
        key = tuple(map(id, self.included))
        if key not in self.known:
            self.known[key] = super().openapi(), self.included  # kept, so that no other router gets its id
        return self.known[key][0]


gateway_app.FastAPI = KnownDocument  # type: ignore[misc]


@dataclass
class ForgetfulQueue:
    """A `RedisJobQueue` in memory that runs jobs against an app, in a few visible steps."""

    app: Any
    step_s: float = 0.05
    last_step: int = 4  # jobs wait at this step while it is less than 4
    jobs: dict[str, Job] = field(default_factory=dict)
    payloads: dict[str, Payload] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    async def submit(self, payload: Payload, idempotency_key: str | None = None) -> tuple[Job, bool]:
        if idempotency_key in self.keys:
            return self.jobs[self.keys[idempotency_key]], False
        job = Job(
            id=f"job-{next(self.numbers)}", service=payload.service, path=payload.path, status="queued", position=1,
            created=datetime.now(UTC),
        )  # fmt: skip
        if idempotency_key is not None:
            self.keys[idempotency_key] = job.id
        self.jobs[job.id], self.payloads[job.id] = job, payload
        self._begin(job.id)
        return job, True

    async def get(self, job_id: str, tenant: str) -> Job:
        if job_id not in self.jobs:
            raise NotFound(f"There is no job {job_id!r}.")
        return self.jobs[job_id]

    async def recent(self, tenant: str, limit: int = 50, after: str | None = None) -> list[Job]:
        found = list(self.jobs.values())[::-1]
        if after and after not in self.jobs:
            raise NotFound(f"The list has no job {after!r}.")
        begin = found.index(self.jobs[after]) + 1 if after else 0
        return found[begin : begin + limit]

    async def dead(self, tenant: str, limit: int = 50, after: str | None = None) -> list[Job]:
        return [job for job in await self.recent(tenant, after=after) if job.dead][:limit]

    async def result(self, job_id: str, tenant: str) -> Result:
        job = await self.get(job_id, tenant)
        if job.status not in FINAL:
            raise Conflict(f"The job is {job.status}.", hint="Wait for it.")
        if job_id not in self.results:
            raise Conflict("The job has no result.")
        return self.results[job_id]

    async def cancel(self, job_id: str, tenant: str) -> Job:
        job = await self.get(job_id, tenant)
        if job.status not in FINAL:
            self.tasks[job_id].cancel()
            self._note(job_id, status="cancelled", finished=datetime.now(UTC))
        return self.jobs[job_id]

    async def delete(self, job_id: str, tenant: str) -> Job:
        job = await self.get(job_id, tenant)
        return self.jobs.pop(job_id) if job.status in FINAL else await self.cancel(job_id, tenant)

    async def retry(self, job_id: str, tenant: str, caller: Mapping[str, str] | None = None) -> Job:
        job = await self.get(job_id, tenant)
        if job.status not in {"failed", "cancelled"}:
            raise Conflict(f"The job is {job.status}.")
        self._note(job_id, status="queued", progress=0.0, error=None, finished=None)
        self._begin(job_id)
        return self.jobs[job_id]

    async def events(self, job_id: str, tenant: str) -> AsyncIterator[Job]:
        last = None
        while last is None or last.status not in FINAL:
            if (job := await self.get(job_id, tenant)) != last:
                yield (last := job)
            await asyncio.sleep(0.01)

    async def counts(self, service: str) -> Counts:
        states = [job.status for job in self.jobs.values()]
        return Counts(states.count("queued"), states.count("running"))

    def _begin(self, job_id: str) -> None:
        self.tasks[job_id] = asyncio.get_running_loop().create_task(self._run(job_id))

    def _note(self, job_id: str, **changed: Any) -> None:
        self.jobs[job_id] = self.jobs[job_id].model_copy(update=changed)

    async def _run(self, job_id: str) -> None:
        await asyncio.sleep(self.step_s)
        self._note(job_id, status="running", position=None, started=datetime.now(UTC), attempts=1)
        for step in range(1, 5):
            self._note(job_id, progress=step / 5, note=f"step {step} of 5")
            await asyncio.sleep(self.step_s)
            while step == self.last_step < 4:  # noqa: ASYNC110 - a test's thread sets it
                await asyncio.sleep(0.01)
        payload, transport = self.payloads[job_id], httpx2.ASGITransport(self.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://stub") as client:
            answer = await client.post(payload.path, content=payload.body, headers=dict(payload.headers))
        done = {"finished": datetime.now(UTC), "progress": 1.0, "note": None}
        self.results[job_id] = Result(answer.status_code, answer.headers["content-type"], answer.content)
        if answer.is_error:
            self._note(job_id, status="failed", error=answer.json(), **done)
        else:
            self._note(job_id, status="succeeded", **done)


@dataclass
class Stage:
    url: str
    stub: Stub
    queue: ForgetfulQueue
    keys: KeyRing


@contextlib.contextmanager
def running(folder: Path, stub: Stub | None = None, **settings: Any) -> Iterator[Stage]:
    """A gateway and its stub service; keyword arguments are settings."""
    stub = stub or Stub()
    with fronted(stub.app, "stub", folder, **settings) as (url, queue, keys):
        yield Stage(url, stub, queue, keys)


@contextlib.contextmanager
def fronted(app: Any, service: str, folder: Path, **settings: Any) -> Iterator[tuple[str, ForgetfulQueue, KeyRing]]:
    """A gateway in front of one service's app, once it knows the service's routes: its URL, its queue and its keys."""
    queue = ForgetfulQueue(app)
    config = uvicorn.Config(
        app, port=0, log_config=None, access_log=False, lifespan="auto", ws="none", timeout_graceful_shutdown=1
    )
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())  # tests read what commands print
    with run_server(uvicorn.Server(config)) as upstream:
        # A page that asks a real service at once would only see that its models load.
        wait_until(lambda: httpx2.get(f"{upstream}/readyz", timeout=60).status_code != 503, 300, "the service's models")
        chosen = Settings(
            data_dir=folder, http_port=0, grpc_port=0, shutdown_grace_s=1, static_upstreams=f"{service}={upstream}",
            **settings,
        )  # fmt: skip
        front = build_gateway(chosen, queue)
        with run_server(create_server(front, chosen)) as url:
            replicas = front.state.gateway.registry.list_alive
            wait_until(lambda: any(one.record.routes for one in replicas(service)), 120, "the service's routes")
            yield url, queue, KeyRing(chosen.keys_path)


@contextlib.contextmanager
def served(service: str, kinds: dict[str, Any], folder: Path) -> Iterator[str]:
    """A gateway in front of a service with these models: its URL."""
    settings = Settings(_env_file=None, data_dir=folder, intra_op_threads=1)
    with fronted(build(service, servables=kinds, settings=settings), service, folder) as (url, *_):
        yield url
