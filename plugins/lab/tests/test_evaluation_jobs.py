"""Needle grids and fidelity as jobs: progress that only grows, and a cancel that frees."""

import asyncio
import io
import json

import pytest
from PIL import Image

from fovea.errors import Cancelled
from services.llm_longctx.tests.conftest import MODEL, app_of
from shared.jobs.queue import Payload, Result
from shared.serving.http import middleware
from shared.serving.jobs.replica_directory import ReplicaDirectory
from shared.serving.jobs.replica_handler import ReplicaJobHandler
from shared.serving.replica import ReplicaServer
from shared.serving.tests.tickets import Ticket
from tests.harness.waiting import until


class Reported:
    """Progress of a replica that goes to the ticket of the test, not to Redis."""

    def __init__(self, ticket: Ticket) -> None:
        self._ticket, self._loop = ticket, asyncio.get_running_loop()

    def __call__(self, fraction: float, note: str | None) -> None:
        asyncio.run_coroutine_threadsafe(self._ticket.progress(fraction, note), self._loop)

    async def stop(self) -> None:
        """Nothing is held."""


@pytest.fixture
def app(folder, tmp_path, redis_url):
    return app_of(folder, tmp_path, llm_fidelity_sample_rate=1.0, redis_url=redis_url, shutdown_grace_s=0.1)


@pytest.fixture
async def worker(app, monkeypatch):
    settings = app.state.settings
    replica = ReplicaServer(app, settings)
    await replica.start()
    handler = ReplicaJobHandler(ReplicaDirectory(settings.redis_url, replica.host.service, ""), settings)

    async def run(sent: Payload, ticket: Ticket) -> Result:
        monkeypatch.setattr(middleware, "RemoteReport", lambda *_: Reported(ticket))
        return await handler(sent, ticket)

    yield run
    await handler.close()
    await replica.stop()


def payload(kind, accept="application/json", **spec):
    headers = {"content-type": "application/json", "accept": accept}
    return Payload("llm-longctx", f"/v1/longctx/{kind}", json.dumps(spec).encode(), headers)


async def test_a_needle_grid_as_a_job_is_told_step_by_step_and_comes_as_json_or_picture(worker):
    spec = {"lengths": [150, 170], "depths": [0, 100], "steps": 3}
    ticket = Ticket()
    answer = await worker(payload("needle", **spec), ticket)
    assert answer.status == 200
    report = json.loads(answer.body)
    assert (report["model"], report["lengths"], len(report["recall"])) == (MODEL, [150, 170], 2)
    shares = [share for share, _ in ticket.told]
    assert (shares, ticket.told[-1]) == (sorted(shares), (1.0, "170 tokens, depth 0 %"))
    drawn = await worker(payload("needle", "image/png", **spec), Ticket())
    assert (drawn.content_type, Image.open(io.BytesIO(drawn.body)).format) == ("image/png", "PNG")


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("needle", {"lengths": [150], "depths": [0, 20, 40, 60, 80, 100], "needles": 3, "steps": 30}),
        pytest.param("fidelity", {"lengths": [40, 60, 80, 100], "steps": 60}, marks=pytest.mark.release),
    ],
)
async def test_a_job_that_is_cancelled_stops_and_frees_its_pages(app, worker, kind, spec):
    ticket = Ticket()
    running = asyncio.create_task(worker(payload(kind, **spec), ticket))
    await until(lambda: any(share for share, _ in ticket.told), 60)
    ticket.stop.set()
    with pytest.raises(Cancelled):
        await running
    assert max(share for share, _ in ticket.told) < 1
    engine = app.state.host.servable(MODEL).adapter.engine
    await until(lambda: not engine.scheduler.in_flight and not engine.scheduler.backend.background_tasks)
    engine.prefix_cache.clear()
    assert engine.pool.held == 0
