"""One real Redis for each pytest worker, emptied for each test that asks for it, or for each module.

A test that kills or reconfigures its Redis asks for `own_redis`.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from shared.jobs.redis_server import RedisServer
from shared.settings import Settings


def start_redis(folder: Path) -> RedisServer:
    """A server of this machine that keeps its data in `folder`, whatever the environment says of Redis."""
    return RedisServer(Settings(_env_file=None, data_dir=folder, redis_url=None))  # type: ignore[call-arg]


def empty(server: RedisServer) -> str:
    """Empty a Redis; return its URL."""
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
    return server.url


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The Redis of this worker. Ask for `redis_url` or `module_redis_url`, which empty it."""
    with start_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    return empty(redis_server)


@pytest.fixture(scope="module")
def module_redis_url(redis_server: RedisServer) -> str:
    """URL of a Redis that is empty when the module begins; no test of the module may ask for `redis_url`."""
    return empty(redis_server)


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    with start_redis(tmp_path) as server:
        yield server
