"""Payloads that are too large for Redis: gone when told, and shared by processes that share no folder."""

import asyncio
import os
import time
from dataclasses import replace

import pytest

from fovea.errors import Fault
from shared.jobs.consumer import QueueConsumer
from shared.jobs.payloads import PayloadStore
from shared.jobs.queue import Result
from shared.jobs.redis_queue import RedisJobQueue
from shared.jobs.tests.running_worker import take
from shared.settings import Settings
from shared.storage import ObjectStore, open_object_store
from shared.storage.tests.s3_server import run_s3_server


@pytest.fixture
def payloads(tmp_path):
    return PayloadStore(ObjectStore.open(tmp_path.as_uri()))


async def test_deleting_is_idempotent_and_touches_one_job_and_what_is_gone_is_a_fault(payloads):
    with pytest.raises(Fault, match="gone"):
        await payloads.get("a/request")
    for name in ("a/request", "a/answer-1", "b/request"):
        await payloads.put(name, b"x")
    for _ in range(2):
        await payloads.delete("a/request")
    assert await payloads.get("a/answer-1") == b"x"
    for _ in range(2):
        await payloads.delete_job("a")
    assert sorted(await payloads.older_than(-60)) == ["b"]


async def test_age_is_that_of_the_newest_payload(payloads, tmp_path):
    assert await payloads.older_than(0) == []
    await payloads.put("old/request", b"x")
    os.utime(tmp_path / "blobs" / "old" / "request", (time.time() - 100,) * 2)
    await payloads.put("new/request", b"x")
    assert await payloads.older_than(50) == ["old"]
    await payloads.put("old/answer-1", b"x")
    assert await payloads.older_than(50) == []


@pytest.fixture(scope="module")
def s3_variables():
    with run_s3_server() as variables:
        yield variables


async def test_gateway_and_worker_of_two_machines_share_a_bucket(
    redis_url, payload, tmp_path, s3_variables, monkeypatch
):
    for name, value in s3_variables.items():
        monkeypatch.setenv(name, value)
    machines = [
        Settings(data_dir=tmp_path / name, object_store="s3://fovea/queue", job_inline_max_bytes=10, job_ttl_s=1)
        for name in ("gateway", "worker")
    ]
    queue, inbox = RedisJobQueue(redis_url, machines[0]), QueueConsumer(redis_url, payload.service, machines[1])
    body, answer = os.urandom(100_000), os.urandom(50_000)
    try:
        job, _ = await queue.submit(replace(payload, body=body))
        delivery = await take(inbox)
        assert (await inbox.payload(delivery)).body == body
        assert await inbox.succeed(delivery, Result(200, "application/x", answer))
        assert (await queue.result(job.id, payload.tenant)).body == answer
        objects = open_object_store(machines[0]).under("blobs", job.id)
        assert objects.list_names() == ["answer-1"]
        async with asyncio.timeout(20):
            while not await inbox.sweep():  # noqa: ASYNC110  (the job expires by the clock of Redis)
                await asyncio.sleep(0.1)
        assert objects.list_names() == []
    finally:
        await queue.close()
        await inbox.close()
    assert os.listdir(tmp_path) == [], "nothing was written to either machine"  # noqa: PTH208
