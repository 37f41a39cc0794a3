"""Services that may be scaled to zero: what they serve stays known while no replica runs, and who waits starts one.

A gateway that has a request for such a service and no replica sets a key in Redis, which Ray's autoscaling policy
reads (`shared.serving.wanted`). Redis holds the routes and models of the last replica, so that new gateways know them.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from pydantic import ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from fovea.api.replica import WANTED_S, ReplicaRecord, wanted_key
from services.gateway.metrics import WAITING_REQUESTS

WANT_INTERVAL_S = 5.0
"""Seconds between two writes of the key while requests wait."""

_LAST_SERVED = "fovea:last_served:"
"""Redis hash, by service, of what it served when it last had a replica: `record`, `models` and `openapi`."""


class OnDemandServices:
    """Knowledge of services without replicas, and requests for one. Belongs to one event loop."""

    def __init__(self, names: Iterable[str], redis: Redis | None) -> None:
        """Treat the services `names` as on demand, with what gateways share in `redis`."""
        self.names = frozenset(names) if redis is not None else frozenset[str]()
        self._redis = redis
        self._served: dict[str, dict[str, str]] = {}
        self._unsaved: set[tuple[str, str]] = set()
        self._wanted_at: dict[str, float] = {}
        for name in self.names:
            WAITING_REQUESTS.labels(name).set(0)

    def records(self) -> dict[str, ReplicaRecord]:
        """Records of the last replica of each service; without those that none is known of."""
        found = {}
        for name in self.names:
            with suppress(ValidationError, KeyError):
                found[name] = ReplicaRecord.model_validate_json(self._served[name]["record"])
        return found

    def is_known(self, service: str) -> bool:
        """Whether a service is on demand and has served before, so that it counts as ready without replicas."""
        return service in self.names and "record" in self._served.get(service, ())

    def keep(self, service: str, field: str, text: str) -> None:
        """Keep a text about a service on demand for the time when no replica runs; saved at the next poll."""
        if service in self.names and text != self.read(service, field):
            self._served.setdefault(service, {})[field] = text
            self._unsaved.add((service, field))

    def read(self, service: str, field: str) -> str:
        """Read a kept text; empty where there is none."""
        return self._served.get(service, {}).get(field, "")

    async def poll(self, ready: Mapping[str, ReplicaRecord]) -> None:
        """Keep what replicas that are ready serve, and read what other gateways kept of the services that have none.

        Raises RedisError: Redis does not answer; so do `OSError` and `TimeoutError`.
        """
        if self._redis is None:
            return
        for name in self.names:
            if name in ready:
                self.keep(name, "record", _normalise(ready[name]))
            elif not self.is_known(name):
                found: Mapping[Any, Any] = await self._redis.hgetall(_LAST_SERVED + name)
                self._served[name] = {field.decode(): text.decode() for field, text in found.items()}
        for service, field in list(self._unsaved):
            await self._redis.hset(_LAST_SERVED + service, field, self._served[service][field])
            self._unsaved.discard((service, field))

    @contextmanager
    def count_waiting(self, service: str) -> Iterator[None]:
        """Count a request that waits for a replica while the block runs; of services on demand only."""
        if service not in self.names:
            yield
            return
        gauge = WAITING_REQUESTS.labels(service)
        gauge.inc()
        try:
            yield
        finally:
            gauge.dec()

    async def want(self, service: str) -> None:
        """Ask for a replica of a service on demand; never raises."""
        now = time.monotonic()
        if self._redis is None or service not in self.names:
            return
        if now - self._wanted_at.get(service, float("-inf")) >= WANT_INTERVAL_S:
            self._wanted_at[service] = now
            with suppress(RedisError, OSError, TimeoutError):
                await self._redis.set(wanted_key(service), "1", ex=WANTED_S)


def _normalise(record: ReplicaRecord) -> str:
    """Write the part of a record that is the same for each replica of a service."""
    blank = {"id": "", "http": "", "grpc": None, "pid": 0, "memory": 0.0, "trouble": "", "seen": 0.0}
    return record.model_copy(update=blank).model_dump_json()
