"""Whether a service that is scaled to zero is wanted: a request at a gateway, or a job at a worker, waits for it.

Gateways and workers set a key in Redis for some minutes (`fovea.api.replica.wanted_key`); Ray's policy reads it.
"""

import time
from functools import lru_cache

import redis
from redis.exceptions import RedisError

from fovea.api.replica import wanted_key
from shared.jobs.redis_connection import open_redis
from shared.settings import settings

MAX_AGE_S = 1.0
"""How old an answer of Redis may be: Ray asks its policy ten times a second."""

AWAY_PAUSE_S = 5.0
"""How long a Redis that does not answer is not asked again, since Ray's controller stands still meanwhile."""

_TIMEOUT_S = 0.5


class WantedKey:
    """The key of one service, as last read."""

    def __init__(self, url: str, service: str) -> None:
        self._redis: redis.Redis = open_redis(url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S)
        self._key, self._due, self._is_set = wanted_key(service), 0.0, False

    def read(self) -> bool:
        """Whether the key is there; the last answer while Redis is away."""
        if time.monotonic() >= self._due:
            try:
                self._is_set = bool(self._redis.exists(self._key))
                self._due = time.monotonic() + MAX_AGE_S
            except (RedisError, OSError):
                self._due = time.monotonic() + AWAY_PAUSE_S
        return self._is_set


def is_wanted(service: str) -> bool:
    """Whether somebody waits, or waited lately, for a service; False where the settings name no Redis."""
    url = settings().redis_url
    return url is not None and _open(url, service).read()


_open = lru_cache(maxsize=16)(WantedKey)
