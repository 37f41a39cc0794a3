"""A worker and a replica as processes of their own, as the image runs them, with a real Redis."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys

import httpx2
import pytest

from fovea.api.job import Job
from shared.jobs.queue import Payload
from shared.jobs.redis_queue import RedisJobQueue
from shared.settings import environment
from tests.harness.waiting import free_port, wait_until


@pytest.fixture
def start(redis_url, tmp_path):
    children: list[subprocess.Popen[bytes]] = []
    env = {
        **os.environ, "FOVEA_REDIS_URL": redis_url, "FOVEA_DATA_DIR": str(tmp_path),
        "FOVEA_SHUTDOWN_GRACE_S": "0.5", "FOVEA_JOB_LEASE_S": "1",
    }  # fmt: skip

    def begin(*module: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", *(module or ("shared.serving.worker", "toy"))]
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


async def test_jobs_go_through_worker_and_replica_and_come_back_at_sigterm(queue, start):
    worker, _ = start(), start("shared.serving.tests.toy_replica")
    first, _ = await queue.submit(ask("/v1/probe", text="ab", sleep=1.0, times=2))
    told = [(now.status, now.note) for now in await story(queue, first)]
    assert told[0] == ("queued", None)
    assert ("running", "step 3") in told
    assert told[-1] == ("succeeded", None)
    assert json.loads((await queue.result(first.id, "local")).body)["text"] == "abab"
    last, _ = await queue.submit(ask("/v1/probe", text="a", sleep=30))
    await running(queue, last, "step 0")
    worker.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(worker.wait, 60) == 0
    back = await queue.get(last.id, "local")
    assert (back.status, back.position) == ("queued", 0)
    assert await queue.workers("toy") == []


def test_an_idle_worker_holds_no_framework_and_one_without_a_redis_says_what_to_set():
    look = "import sys, shared.serving.worker; print({'torch', 'numpy', 'fastapi', 'starlette'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "set()"
    env = {name: value for name, value in os.environ.items() if name != "FOVEA_REDIS_URL"}
    command = [sys.executable, "-m", "shared.serving.worker", "toy"]
    said = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=30)
    assert said.returncode == 2
    assert "FOVEA_REDIS_URL" in said.stderr
    assert "Traceback" not in said.stderr


def run(*arguments):
    env = environment(FOVEA_LOG_FORMAT="json", FOVEA_SHUTDOWN_GRACE_S="1")
    command = [sys.executable, "-m", "shared.serving", *arguments]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_it_serves_on_the_stated_ports_until_sigterm():
    http, grpc = free_port(), free_port()
    process = run("relevance-judge", "--http-port", str(http), "--grpc-port", str(grpc))

    def ask():
        with contextlib.suppress(httpx2.ConnectError):
            return httpx2.get(f"http://127.0.0.1:{http}/livez").json()

    assert wait_until(ask, 120) == {"status": "alive"}
    with socket.create_connection(("127.0.0.1", grpc), 5):
        pass
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert '"serving"' in said
    assert "Traceback" not in said


def test_unknown_service_and_port_in_use_are_one_clear_line():
    process = run("nope")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "medical-seg" in said
    assert "Traceback" not in said
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = run("relevance-judge", "--http-port", str(taken.getsockname()[1]))
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "--http-port" in said
    assert "Traceback" not in said
