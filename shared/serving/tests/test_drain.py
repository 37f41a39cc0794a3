"""A pod that is about to stop: its replicas withdraw, finish what they had begun, and `preStop` returns only then."""

import asyncio
import os
import signal
import subprocess
import sys
import time

import httpx2
import pytest
import redis

from fovea.api.replica import replicas_key
from shared.serving.build_app import build
from shared.serving.drain import DrainFiles, drain
from shared.serving.replica import ReplicaServer
from shared.serving.tests.toys import TOYS
from shared.settings import Settings, environment
from tests.harness.waiting import until


@pytest.fixture
async def replica(start_replica, redis_url, tmp_path):
    return await start_replica(redis_url=redis_url, data_dir=tmp_path, shutdown_grace_s=1)


def pre_stop(data_dir, grace="20"):
    env = environment(FOVEA_DATA_DIR=str(data_dir), FOVEA_SHUTDOWN_GRACE_S=grace)
    return subprocess.Popen([sys.executable, "-m", "shared.serving.drain"], env=env)


async def test_requests_in_flight_end_before_the_hook_returns_and_no_new_ones_are_sent(replica, redis_url, tmp_path):
    with redis.Redis.from_url(redis_url) as link:
        await until(lambda: link.hlen(replicas_key("toy")), 60)
        client = httpx2.AsyncClient(base_url=replica.http, timeout=30)
        how = {"json": {"text": "…"}, "headers": {"accept": "text/event-stream"}}
        async with client, client.stream("POST", "/v1/plan", **how) as endless:
            assert endless.status_code == 200
            assert replica.in_flight == 1
            hook = pre_stop(tmp_path)
            await until(lambda: not link.hlen(replicas_key("toy")), 20)
            # Sent before word got round:
            assert (await client.post("/v1/echo", json={"text": "late"})).status_code == 200
            with pytest.raises(subprocess.TimeoutExpired):
                await asyncio.to_thread(hook.wait, 0.5)
        assert await asyncio.to_thread(hook.wait, 10) == 0
        assert not link.hlen(replicas_key("toy"))
    assert list((tmp_path / "replicas").iterdir()) == []


async def test_what_comes_before_the_withdrawal_is_waited_for(redis_url, tmp_path):
    settings = Settings(redis_url=redis_url, data_dir=tmp_path, shutdown_grace_s=1)
    moved, asked = asyncio.Event(), []

    async def move():
        asked.append(True)
        await moved.wait()

    made = ReplicaServer(build("toy", servables=TOYS, settings=settings), settings, before_withdrawal=move)
    await made.start()
    with redis.Redis.from_url(redis_url) as link:
        await until(lambda: link.hlen(replicas_key("toy")), 60)
        hook = pre_stop(tmp_path)
        await until(lambda: asked, 20)
        assert link.hlen(replicas_key("toy"))
        moved.set()
        await until(lambda: not link.hlen(replicas_key("toy")), 60)
    assert await asyncio.to_thread(hook.wait, 10) == 0
    await made.stop()


@pytest.mark.timed("The hook gives up after seconds that the pod is given: only a clock tells that.")
def test_hook_gives_up_when_the_time_is_over(tmp_path):
    files = DrainFiles(tmp_path, "busy")
    files.create()
    began = time.monotonic()
    assert drain(tmp_path, 0.5) is False
    assert 0.5 <= time.monotonic() - began < 2
    assert files.is_requested()


def test_replica_that_was_killed_is_not_waited_for_nor_that_of_the_next_start_drained(tmp_path):
    killed = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (tmp_path / "replicas").mkdir()
    (tmp_path / "replicas" / "gone").write_text(str(killed.pid))
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert drain(tmp_path, 5) is True
    DrainFiles(tmp_path, "first").create()
    drain(tmp_path, 0.2)
    second = DrainFiles(tmp_path, "second")
    second.create()
    assert not second.is_requested()
