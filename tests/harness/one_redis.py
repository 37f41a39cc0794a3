"""One Redis per worker, started when the first test asks for it and emptied for each test.

A test that kills its Redis, fills it or restarts it starts a `RedisServer` of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The worker's server; ask for `redis_url` unless you start it again or read its folder."""
    from shared.jobs.redis_server import RedisServer  # not at the top: the root conftest is read by every run
    from shared.settings import Settings

    with RedisServer(Settings(_env_file=None, data_dir=tmp_path_factory.mktemp("redis"), redis_url=None)) as server:
        yield server


@pytest.fixture
def redis_url(shared_redis: Any) -> str:
    """The URL of an empty Redis."""
    flush(shared_redis.url)
    return str(shared_redis.url)


@pytest.fixture(scope="module")
def module_redis_url(shared_redis: Any) -> str:
    """The URL of a Redis that was empty when the file began: for a product that one file's tests share.

    Tests of that file must not ask for `redis_url`, which would empty it under the product's feet.
    """
    flush(shared_redis.url)
    return str(shared_redis.url)


def flush(url: str) -> None:
    """Remove every key, script and function, and what was configured meanwhile."""
    import redis

    with redis.Redis.from_url(url) as client:
        client.flushall()
        client.script_flush()
