"""A real Redis for each test session, emptied for each test; one of its own for tests that kill it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis

from shared.jobs.consumer import QueueConsumer
from shared.jobs.queue import Payload
from shared.jobs.redis_queue import RedisJobQueue
from shared.jobs.redis_server import RedisServer
from shared.settings import Settings


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The embedded server on a free port."""
    with RedisServer(Settings(data_dir=tmp_path_factory.mktemp("redis"))) as server:
        yield server


@pytest.fixture
def url(redis_server: RedisServer) -> str:
    """An empty Redis."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that the test may kill."""
    with RedisServer(Settings(data_dir=tmp_path)) as server:
        yield server


@pytest.fixture
def job_settings(tmp_path: Path) -> Settings:
    """Small limits and a short lease, so that tests meet them."""
    return Settings(
        data_dir=tmp_path,
        job_lease_s=0.4,
        job_inline_max_bytes=1000,
        job_queue_max=30,
        job_max_attempts=3,
        shutdown_grace_s=0.3,
    )


@pytest.fixture
async def queue(url: str, job_settings: Settings) -> AsyncIterator[RedisJobQueue]:
    """The callers' side."""
    queue = RedisJobQueue(url, job_settings)
    yield queue
    await queue.close()


@pytest.fixture
async def inbox(url: str, job_settings: Settings) -> AsyncIterator[QueueConsumer]:
    """The side of a worker of the service `svc`."""
    inbox = QueueConsumer(url, "svc", job_settings)
    yield inbox
    await inbox.close()


@pytest.fixture
def payload() -> Payload:
    """A small request."""
    return Payload("svc", "/v1/segment", b"body", {"content-type": "image/png"}, tenant="ann")
