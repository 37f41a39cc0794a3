"""`python -m shared.serving.worker`: a whole worker process with an app, against a real Redis."""

import asyncio
import json
import os
import signal
import subprocess
import sys

import pytest

from shared.api.job import Job
from shared.jobs.queue import Payload
from shared.jobs.redis_queue import RedisJobQueue
from shared.settings import Settings
from tests.harness.waiting import until


@pytest.fixture
async def queue(redis_url, tmp_path):
    queue = RedisJobQueue(redis_url, Settings(data_dir=tmp_path))
    yield queue
    await queue.close()


@pytest.fixture
def start(redis_url, tmp_path):
    children: list[subprocess.Popen[bytes]] = []
    env = {
        **os.environ, "FOVEA_REDIS_URL": redis_url, "FOVEA_DATA_DIR": str(tmp_path),
        "FOVEA_SHUTDOWN_GRACE_S": "0.5", "FOVEA_JOB_LEASE_S": "1",
    }  # fmt: skip

    def begin(app: str = "toy_app") -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "shared.serving.worker", "toy", "--app", f"shared.serving.tests.{app}:app"]
        with (tmp_path / "workers.log").open("ab") as log:
            children.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
        return children[-1]

    yield begin
    for child in children:
        child.kill()
        child.wait()


def ask(path: str, **body: object) -> Payload:
    return Payload("toy", path, json.dumps(body).encode(), {"content-type": "application/json"})


async def story(queue: RedisJobQueue, job: Job) -> list[Job]:
    async with asyncio.timeout(90):
        return [now async for now in queue.events(job.id, "local")]


async def running(queue: RedisJobQueue, job: Job, note: str) -> None:
    async with asyncio.timeout(90):
        async for now in queue.events(job.id, "local"):
            if now.note == note:
                return


async def test_a_job_goes_through_the_whole_app_with_progress(queue, start):
    start()
    job, _ = await queue.submit(ask("/v1/probe", text="ab", sleep=1.0, times=2))
    told = [(now.status, now.note) for now in await story(queue, job)]
    assert told[0] == ("queued", None)
    assert ("running", "loading the models") in told
    assert ("running", "step 3") in told
    assert told[-1] == ("succeeded", None)
    answer = await queue.result(job.id, "local")
    assert (answer.status, answer.content_type) == (200, "application/json")
    assert json.loads(answer.body)["text"] == "abab"


async def test_refusals_and_failures_end_as_the_contract_says(queue, start):
    start()
    refused, _ = await queue.submit(ask("/v1/echo", text="bad"))
    invalid, _ = await queue.submit(ask("/v1/echo", text="x", times=-1))
    nowhere, _ = await queue.submit(ask("/v1/nowhere"))
    broken, _ = await queue.submit(ask("/v1/echo", text="bug"))
    for job, status in ((refused, 422), (invalid, 422), (nowhere, 404)):
        end = (await story(queue, job))[-1]
        assert (end.status, end.attempts, end.dead) == ("failed", 1, False)
        assert end.error is not None
        assert end.error["status"] == status
        assert (await queue.result(job.id, "local")).status == status
    end = (await story(queue, broken))[-1]
    assert (end.status, end.attempts, end.dead) == ("failed", 3, True)
    assert "secret" not in str(end.error)


async def test_sigterm_hands_back_what_is_unfinished_and_ends_the_process(queue, start):
    worker = start()
    job, _ = await queue.submit(ask("/v1/probe", text="a", sleep=30))
    await running(queue, job, "step 0")
    worker.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(worker.wait, 60) == 0
    back = await queue.get(job.id, "local")
    assert (back.status, back.position) == ("queued", 0)
    assert await queue.workers("toy") == []


async def test_a_model_that_does_not_listen_does_not_keep_the_process(queue, start, tmp_path):
    worker = start("deaf_app")
    job, _ = await queue.submit(ask("/deaf"))
    await until((tmp_path / "deaf").exists, 90)
    worker.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(worker.wait, 60) == 0
    assert (await queue.get(job.id, "local")).status == "queued"


def test_a_worker_without_a_redis_says_what_to_set():
    env = {name: value for name, value in os.environ.items() if name != "FOVEA_REDIS_URL"}
    command = [sys.executable, "-m", "shared.serving.worker", "toy"]
    said = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=30)
    assert said.returncode == 2
    assert "FOVEA_REDIS_URL" in said.stderr
    assert "Traceback" not in said.stderr
