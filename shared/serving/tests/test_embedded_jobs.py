"""Jobs in the replica: on the models that serve requests, after them, and released when the replica stops."""

import asyncio
import json
from functools import partial

import pytest

from shared.jobs.queue import Payload
from shared.jobs.tests.running_worker import ended
from shared.settings import Settings
from tests.harness.waiting import until


@pytest.fixture
def chosen(redis_url, tmp_path):
    return Settings(
        redis_url=redis_url, data_dir=tmp_path, shutdown_grace_s=0.2, jobs_in_replica=True, replica_secret="s1"
    )  # fmt: skip


@pytest.fixture
async def replica(start_replica, chosen):
    return await start_replica(must_load=False, **chosen.model_dump(exclude_unset=True))


def ask(path, **body):
    return Payload("toy", path, json.dumps(body).encode(), {"content-type": "application/json"})


last_state = partial(ended, tenant="local")


async def test_a_task_runs_on_the_models_that_serve_and_another_route_in_a_replica(replica, queue):
    job, _ = await queue.submit(ask("/v1/echo", text="ab"))
    assert (await last_state(queue, job)).status == "succeeded"
    assert replica.host.servable("toy/echo").seen == ["hello", "ab"]
    assert json.loads((await queue.result(job.id, "local")).body)["text"] == "ab"
    job, _ = await queue.submit(ask("/v2/models/toy/echo/infer", inputs=[
        {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
    ]))  # fmt: skip
    assert (await last_state(queue, job)).status == "succeeded"
    assert json.loads((await queue.result(job.id, "local")).body)["outputs"][0]["data"] == [2, 3, 4]
    job, _ = await queue.submit(ask("/v1/nowhere"))
    ended = await last_state(queue, job)
    assert (ended.status, ended.error["status"], ended.attempts) == ("failed", 404, 1)


async def test_a_replica_that_stops_releases_what_it_has_not_finished(replica, queue):
    job, _ = await queue.submit(ask("/v1/probe", text="a", sleep=30))
    await until(lambda: replica.host.busy)
    assert replica.in_flight
    await replica.stop()
    released = await queue.get(job.id, "local")
    assert (released.status, released.position) == ("queued", 0)
    assert await queue.workers("toy") == []


async def test_a_replica_that_dies_of_memory_fails_its_jobs_for_good(replica, queue, monkeypatch):
    ends = []
    monkeypatch.setattr("shared.serving.replica.os._exit", ends.append)
    job, _ = await queue.submit(ask("/v1/probe", text="a", sleep=30))
    await until(lambda: replica.host.busy)
    await asyncio.to_thread(replica._die_of_memory)
    ended = await last_state(queue, job)
    assert (ended.status, ended.error["status"], ends) == ("failed", 413, [137])
