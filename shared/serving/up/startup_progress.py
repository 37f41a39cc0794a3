"""Startup progress: which services are placed and ready, from Redis, the replicas and the gateway."""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import httpx2
from redis.exceptions import RedisError

from fovea.api.replica import HEARTBEAT_TTL_S, ReplicaRecord, replicas_key
from shared.jobs.redis_connection import open_async_redis

_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class ServiceProgress:
    """Progress of a service: placed, ready, or incomplete, with the reasons of models that failed."""

    service: str
    stage: Literal["placed", "ready", "incomplete"]
    models: tuple[str, ...] = ()
    reasons: dict[str, str] = field(default_factory=dict)


class StartupProgress:
    """Follows the services until all are ready or incomplete."""

    def __init__(
        self, services: Sequence[str], url: str, gateway: str, credentials: Mapping[str, str] | None = None
    ) -> None:
        """Follow `services` in the Redis at `url`; `gateway` is the gateway's base URL, `credentials` are replicas'."""
        self._services = tuple(services)
        self._url = url
        self._gateway = gateway
        self._credentials = dict(credentials or {})
        self._stages: dict[str, str] = {}
        self._began = time.time()

    async def news(self) -> AsyncIterator[ServiceProgress]:
        """Yield each step of each service once; ready is one to which the gateway routes. Ends when all are done."""
        redis: Any = open_async_redis(self._url, socket_timeout=2.0, socket_connect_timeout=1.0)
        async with redis as redis_client, httpx2.AsyncClient(timeout=2.0, trust_env=False) as client:
            while any(self._stages.get(service) not in {"ready", "incomplete"} for service in self._services):
                routed = await self._routed(client)
                for service in self._services:
                    for news in await self._step(redis_client, client, service, routed):
                        yield news
                await asyncio.sleep(_POLL_S)

    async def _step(
        self, redis_client: Any, client: httpx2.AsyncClient, service: str, routed: Collection[str]
    ) -> list[ServiceProgress]:
        stage = self._stages.get(service)
        if stage in {"ready", "incomplete"}:
            return []
        replicas = await self._replicas(redis_client, service)
        if not replicas:
            return []
        now = await _progress_of(client, replicas[0], self._credentials)
        is_new = stage is None and replicas[0].http
        found = [ServiceProgress(service, "placed", replicas[0].models)] if is_new else []
        if now.models and service not in routed:
            now = replace(now, stage="placed")
        if now.stage != "placed":
            found.append(now)
        self._stages[service] = now.stage
        return found

    async def _replicas(self, redis_client: Any, service: str) -> list[ReplicaRecord]:
        try:
            records = await redis_client.hvals(replicas_key(service))
        except (RedisError, OSError):
            return []
        found = [ReplicaRecord.model_validate_json(record) for record in records]
        living = [replica for replica in found if time.time() - replica.seen < HEARTBEAT_TTL_S]
        living = [replica for replica in living if replica.http or replica.seen > self._began]  # not a run's before
        return sorted(living, key=lambda replica: (not replica.ready, not replica.http))

    async def _routed(self, client: httpx2.AsyncClient) -> set[str]:
        try:
            known = (await client.get(f"{self._gateway}/readyz")).json().get("services", {})
        except (httpx2.HTTPError, ValueError):
            return set()
        return {service for service, facts in known.items() if facts.get("ready")}


async def _progress_of(
    client: httpx2.AsyncClient, replica: ReplicaRecord, credentials: Mapping[str, str]
) -> ServiceProgress:
    """Ready, still loading, or done: with some models failed, or because it can't start."""
    if not replica.http:
        return ServiceProgress(replica.service, "incomplete", reasons={"service": replica.trouble})
    try:
        entries = (await client.get(f"{replica.http}/v1/models", headers=credentials)).json()["data"]
    except (httpx2.HTTPError, ValueError, KeyError):
        return ServiceProgress(replica.service, "placed", replica.models)
    if any(entry["state"] in {"waiting", "loading"} for entry in entries):
        return ServiceProgress(replica.service, "placed", replica.models)
    reasons = {entry["id"]: str(entry["reason"]) for entry in entries if entry["state"] == "failed"}
    good = tuple(entry["id"] for entry in entries if entry["ready"])
    return ServiceProgress(replica.service, "incomplete" if reasons else "ready", good, reasons)
