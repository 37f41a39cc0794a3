"""Replica registry: which replicas there are, which one gets the next request, and what all of them serve.

Replicas announce themselves in Redis (`fovea.api.replica`); static upstreams are polled (`static_upstreams`).
A record counts while its `seen` moves: a replica that is silent for `HEARTBEAT_TTL_S` is out. While Redis is away, and
for as long again after it is back, the last known list stands. `load_balancer` picks among those that are ready.
Knows nothing about requests and their retries.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from pydantic import ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from fovea.api.replica import HEARTBEAT_TTL_S, ReplicaRecord, replicas_key
from services.gateway.routing.affinity import AffinityKey
from services.gateway.routing.load_balancer import LoadBalancer
from services.gateway.routing.on_demand import OnDemandServices
from services.gateway.routing.replica import Replica, ServiceState
from services.gateway.routing.route_table import RouteTable
from services.gateway.routing.static_upstreams import StaticUpstream
from services.gateway.routing.version_policy import VersionPolicy, build_version_policy
from shared.jobs.redis_client import cancel_tasks
from shared.jobs.redis_connection import open_async_redis
from shared.settings import Settings
from shared.telemetry import log

POLL_INTERVAL_S = 0.5
"""Seconds between two polls of Redis."""

SUSPECT_S = 1.0
"""How long a replica that refused a connection is passed over."""

NO_MEMORY_SHARE = 0.9
"""Share of its memory beyond which a replica that dies is taken to have died of it."""

RECOVERY_S = 60.0
"""How long requests wait for a service that lost its last ready replica."""

ASK_AFTER_S = HEARTBEAT_TTL_S / 2
"""How long all ready replicas of a service are silent before they are asked: one may be short of processor time."""

FORGET_S = 600.0
"""How long a silent replica's service, routes and models stay known."""

ABORT_AFTER_S = 2 * HEARTBEAT_TTL_S
"""How long a replica is silent before requests that it has not answered go to another; a busy one may renew late."""


Ask = Callable[[Replica], Awaitable[bool]]
"""Asks a replica whether it serves."""


class SilentReplicas:
    """Replicas that renew their records late: where all of a service do, they are asked whether they serve on.

    Belongs to one event loop.
    """

    def __init__(self) -> None:
        self._asking: dict[str, asyncio.Task[None]] = {}

    def ask_all(self, ask: Ask, ready: Sequence[Replica], silent_since: float) -> None:
        """Ask the replicas of a service that were ready, where all of them are silent."""
        self._asking = {name: task for name, task in self._asking.items() if not task.done()}
        if all(replica.changed < silent_since for replica in ready):
            for replica in ready:
                if replica.id not in self._asking:
                    self._asking[replica.id] = asyncio.create_task(self._ask(ask, replica))

    async def stop(self) -> None:
        """Ask no more."""
        await cancel_tasks(*self._asking.values())
        self._asking = {}

    async def _ask(self, ask: Ask, replica: Replica) -> None:
        if await ask(replica):
            log().warning("a replica renews its record late, and serves on", replica=replica.id)
            replica.changed = max(replica.changed, time.monotonic())


class ReplicaRegistry:
    """All services and their replicas.

    Attributes:
        ask: Asks a replica that renews its record no more whether it serves on.
        routes: The routes of all replicas; a new table whenever they change.
        versions: Which versions of a service answer.
        on_demand: Which services may have no replica until somebody asks.
        redis_up: Whether Redis answered last time; None where none is configured.
    """

    def __init__(self, settings: Settings) -> None:
        """Take the names of wanted services and static upstreams from `settings`; `start` begins to poll."""
        self.routes = RouteTable()
        self.redis_up: bool | None = False if settings.redis_url else None
        self._redis = open_async_redis(settings.redis_url, socket_timeout=2) if settings.redis_url else None
        self._upstreams = {
            name: StaticUpstream(name, *urls, settings.replica_credentials)
            for name, urls in settings.upstream_addresses.items()
        }
        on_demand = settings.on_demand_service_names
        self._services = {n: ServiceState() for n in (*settings.enabled_service_names, *on_demand, *self._upstreams)}
        self.versions: VersionPolicy = build_version_policy(self._redis)
        self.on_demand = OnDemandServices(on_demand, self._redis)
        self._balancer, self._has_affinity = LoadBalancer(), settings.load_balancing == "affinity"
        self._wanted = frozenset(self._services)
        self._redis_answered_at = self._registry_stale_until = float("-inf")
        self._frozen_at: float | None = None
        self._scan_due = 0.0
        self._routed: frozenset[tuple[Any, ...]] = frozenset()
        self._tasks: list[asyncio.Task[None]] = []
        self.ask: Ask | None = None
        self._silent = SilentReplicas()

    async def start(self) -> None:
        """Poll once, then keep polling; nothing where it polls already."""
        if self._tasks:
            return
        polls: list[Callable[[], Awaitable[None]]] = [
            self.poll_redis,
            *(partial(self._poll_upstream, upstream) for upstream in self._upstreams.values()),
        ]
        await asyncio.gather(*(poll() for poll in polls))
        self._tasks = [asyncio.create_task(_repeat(poll)) for poll in polls]

    async def stop(self) -> None:
        """Stop polling and close the connections."""
        await cancel_tasks(*self._tasks)
        self._tasks = []
        await self._silent.stop()
        for upstream in self._upstreams.values():
            await upstream.close()
        if self._redis is not None:
            await self._redis.aclose()

    @property
    def services(self) -> list[str]:
        """Names of all services that are wanted, static or announced."""
        return sorted(self._services)

    def list_ready(self, service: str) -> list[Replica]:
        """List replicas of a service that are alive, ready, and of a version that answers."""
        ready = [replica for replica in self.list_alive(service) if replica.record.ready]
        silent = {each for each in {one.record.version for one in ready} if not self.versions.may_answer(service, each)}
        return [replica for replica in ready if replica.record.version not in silent] if silent else ready

    def list_alive(self, service: str) -> list[Replica]:
        """List replicas of a service that are alive, ready or not."""
        state = self._services.get(service)
        if state is None or service in self._upstreams:
            return list(state.replicas.values()) if state else []
        silent_since = (time.monotonic() if self._frozen_at is None else self._frozen_at) - HEARTBEAT_TTL_S
        return [replica for replica in state.replicas.values() if replica.changed > silent_since]

    @property
    def unready_services(self) -> list[str]:
        """Services without a ready replica; one on demand needs none once it is known what it serves."""
        return [name for name in self.services if not self.on_demand.is_known(name) and not self.list_ready(name)]

    def explain_unready(self, service: str) -> str:
        """Explain in half a sentence why a service has no ready replica, by the last record that it wrote."""
        state = self._services.get(service)
        if state is None or not (state.replicas or state.failed):
            return "one is being started" if self.on_demand.is_known(service) else "none has announced itself"
        return state.explain_silence(time.monotonic(), is_alive=bool(self.list_alive(service)))

    @property
    def is_complete(self) -> bool:
        """Whether every wanted service has announced itself, and any at all."""
        return bool(self._services) and all(
            self._services[name].replicas or self.on_demand.is_known(name) for name in self._wanted
        )

    def is_recovering(self, service: str) -> bool:
        """Whether the service had a ready replica a short while ago, so that waiting for the next one makes sense."""
        state = self._services.get(service)
        return state is not None and time.monotonic() - state.last_ready < RECOVERY_S

    async def has_died_of_memory(self, replica: Replica) -> bool:
        """Whether a replica that was lost said so, or was last seen with next to no memory left."""
        await self.poll_redis()
        return replica.record.out_of_memory or replica.record.memory >= NO_MEMORY_SHARE

    def pick(self, service: str, avoid: Iterable[str] = (), key: AffinityKey | None = None) -> Replica | None:
        """Pick a ready replica, by what it may hold or by its load; not one of `avoid` if there is another."""
        now = time.monotonic()
        ready = [r for r in self.list_ready(service) if r.suspect_until <= now]
        untried = [r for r in ready if r.id not in avoid] if avoid else ready
        candidates = untried or ready
        version = self.versions.choose_version(service, sorted({r.record.version for r in candidates}), key)
        if version is not None:
            candidates = [r for r in candidates if r.record.version == version]
        return self._balancer.pick(service, candidates, key if self._has_affinity else None)

    def pick_version(self, service: str, version: str) -> Replica | None:
        """Pick the ready replica of a version with the fewest requests in flight, whether it answers callers or not."""
        alive = [r for r in self.list_alive(service) if r.record.ready and r.record.version == version]
        return self._balancer.pick(service, alive)

    def remember_affinity(self, key: AffinityKey, replica: Replica) -> None:
        """Remember that a replica holds a session or a document that was made in it."""
        self._balancer.remember_affinity(key, replica.id)

    def mark_suspect(self, replica: Replica) -> None:
        """Pass over a replica that refused a connection until it renews its record, or for a second."""
        replica.suspect_until = time.monotonic() + SUSPECT_S

    async def poll_redis(self) -> None:
        """Read all records in Redis once; never raises."""
        if self._redis is None:
            return
        try:
            await self._discover_services(self._redis)
            await self.versions.poll()
            for name in [n for n in self._services if n not in self._upstreams]:
                raw: Mapping[Any, Any] = await self._redis.hgetall(replicas_key(name))
                self._update_service(name, raw)
            await self.on_demand.poll(
                {name: ready[0].record for name in self.on_demand.names if (ready := self.list_ready(name))}
            )
        except (RedisError, OSError, TimeoutError) as error:
            self._note_redis_failure(error)
        else:
            self._note_redis_answer()
            self._abort_hung()
            self._ask_silent()
        self._update_routes()

    async def _poll_upstream(self, upstream: StaticUpstream) -> None:
        record = await upstream.fetch_record()
        if record is not None:
            self._update_replica(self._services[upstream.service].replicas, record)
        self._update_routes()

    def _note_redis_failure(self, error: Exception) -> None:
        if self.redis_up:
            log().warning("Redis is away; the last known replicas stand", reason=str(error))
            self._frozen_at = self._redis_answered_at if self._frozen_at is None else self._frozen_at
        self.redis_up = False

    def _note_redis_answer(self) -> None:
        now = time.monotonic()
        if not self.redis_up and self._frozen_at is not None:
            self._registry_stale_until = now + HEARTBEAT_TTL_S
        if self._frozen_at is not None and now >= self._registry_stale_until:
            self._frozen_at = None
        self.redis_up, self._redis_answered_at = True, now

    async def _discover_services(self, redis: Redis) -> None:
        """Find services that the settings don't name; a scan that took long is not repeated soon."""
        started = time.monotonic()
        if started < self._scan_due:
            return
        prefix = replicas_key("")
        async for key in redis.scan_iter(match=prefix + "*", count=1000):
            name = key.decode().removeprefix(prefix)
            self._services.setdefault(name, ServiceState())
        self._scan_due = started + 10 * (time.monotonic() - started)

    def _update_service(self, service: str, raw: Mapping[bytes, bytes]) -> None:
        """Take over a service's records from Redis; what is no longer there is gone, unless the list is frozen."""
        state = self._services.setdefault(service, ServiceState())  # another poll may have forgotten it meanwhile
        for blob in raw.values():
            with suppress(ValidationError):
                record = ReplicaRecord.model_validate_json(blob)
                self._update_replica(state.replicas if record.http else state.failed, record)
        now, is_on_demand = time.monotonic(), service in self.on_demand.names
        for replica in list(state.replicas.values()):
            is_gone = replica.id.encode() not in raw and self._frozen_at is None
            if now - replica.changed > FORGET_S or (is_gone and (len(state.replicas) > 1 or is_on_demand)):
                del state.replicas[replica.id]
            elif is_gone and replica.record.ready:  # the last one: requests wait for its successor
                replica.changed = now - HEARTBEAT_TTL_S
                replica.record = replica.record.model_copy(update={"ready": False, "trouble": "It was stopped."})
        if not state.replicas and service not in self._wanted:
            del self._services[service]

    def _update_replica(self, replicas: dict[str, Replica], record: ReplicaRecord) -> None:
        now = time.monotonic()
        replica = replicas.get(record.id)
        if replica is None:
            # An old record is a dead replica's, or a live one's whose clock is behind: the next renewal shows which.
            age = min(max(time.time() - record.seen, 0.0), 2 * HEARTBEAT_TTL_S)
            replicas[record.id] = Replica(record, changed=now - age)
        elif record.seen != replica.record.seen:
            replica.record, replica.changed, replica.suspect_until = record, now, 0.0

    def _abort_hung(self) -> None:
        """End what is under way to replicas that hang, where another replica is ready to take it."""
        silent_since = (self._frozen_at or time.monotonic()) - ABORT_AFTER_S
        for name in set(self._services) - set(self._upstreams):
            hung = [r for r in self._services[name].replicas.values() if r.attempts and r.changed < silent_since]
            if hung and self.list_ready(name):
                for attempt in [attempt for replica in hung for attempt in replica.attempts]:
                    attempt.abort()

    def _ask_silent(self) -> None:
        """Where all replicas of a service are silent that were ready, ask them."""
        since = time.monotonic() - ASK_AFTER_S
        for service in set(self._services) - set(self._upstreams):
            ready = [replica for replica in self._services[service].replicas.values() if replica.record.ready]
            if self.ask is not None:
                self._silent.ask_all(self.ask, ready, since)

    def _update_routes(self) -> None:
        """Note which services are ready now, and build a new route table where the replicas' routes changed."""
        now = time.monotonic()
        for name, state in self._services.items():
            if self.list_ready(name):
                state.last_ready = now
        records = [r.record for s in self._services.values() for r in s.replicas.values()]
        records += [record for name, record in self.on_demand.records().items() if not self._services[name].replicas]
        routed = frozenset((r.service, r.models, r.routes, r.effectful, r.endless, r.affine) for r in records)
        if routed != self._routed:
            self._routed = routed
            self.routes = RouteTable.from_records(records)


async def _repeat(poll: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(POLL_INTERVAL_S)
        try:
            await poll()
        except Exception:  # noqa: BLE001  # such as of a plug-in's policy: without polls no replica would count any more
            log().exception("replicas could not be read; they are read again")
