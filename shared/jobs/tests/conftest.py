"""Both sides of a job queue in the Redis of tests/harness/redis_servers.py."""

import pytest

from shared.jobs.consumer import QueueConsumer
from shared.jobs.queue import Payload
from shared.jobs.redis_queue import RedisJobQueue
from shared.settings import Settings


@pytest.fixture
def job_settings(tmp_path):
    return Settings(
        data_dir=tmp_path, job_lease_s=0.4, job_inline_max_bytes=1000, job_queue_max=30, job_max_attempts=3,
        shutdown_grace_s=0.3,
    )  # fmt: skip


@pytest.fixture
async def queue(redis_url, job_settings):
    queue = RedisJobQueue(redis_url, job_settings)
    yield queue
    await queue.close()


@pytest.fixture
async def inbox(redis_url, job_settings):
    inbox = QueueConsumer(redis_url, "svc", job_settings)
    yield inbox
    await inbox.close()


@pytest.fixture
def payload():
    return Payload("svc", "/v1/segment", b"body", {"content-type": "image/png"}, tenant="ann")
