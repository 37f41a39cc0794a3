"""Gateways of the simulation: the real registry, rate limits, fair queue, load balancer and retry policy.

Only what they stand on is simulated: the clock, Redis, the connection to a replica, and the processor, whose time per
request and per record was measured.
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from fovea.errors import DeadlineExceeded, FoveaError, NotReady
from loadtests.simulation.clock import Processor, SimulatedClock
from loadtests.simulation.redis import RateWindows, RedisClient, SimulatedRedis
from loadtests.simulation.replicas import ReplicaGone, SimulatedReplica, Work
from services.gateway.policy import quotas
from services.gateway.policy.caller import Caller
from services.gateway.policy.fair_queue import FairQueue
from services.gateway.proxy.retry import ReplicaRetryPolicy, RetryState, UpstreamLost
from services.gateway.routing import replica_registry
from services.gateway.routing.affinity import held_key
from services.gateway.routing.replica import Dispatch, Replica
from services.gateway.routing.version_policy import VersionPolicy
from shared.settings import Settings


@dataclass(frozen=True, slots=True)
class GatewayCosts:
    """Processor seconds of a gateway: of a request, of its place and pick by replica, and of a record that it reads."""

    request: float
    route: float
    record: float


@dataclass(slots=True)
class Answers:
    """Answers to callers: statuses, and seconds of those that were answered, with the wait for a turn."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[tuple[float, str, float]] = field(default_factory=list)
    """When it was answered, whose it was, seconds."""

    retried: int = 0
    queue_s: float = 0.0


async def _refuse() -> None:
    """Nobody is there: the connection is refused."""
    raise ReplicaGone(was_sent=False)


class SimulatedGateway:
    """One gateway."""

    def __init__(
        self,
        clock: SimulatedClock,
        redis: SimulatedRedis,
        costs: GatewayCosts,
        fleet: Mapping[str, SimulatedReplica],
        settings: Settings,
    ) -> None:
        self.processor, self.answers = Processor(clock), Answers()
        self._costs, self._fleet, self._clock = costs, fleet, clock
        self._ids = itertools.count()
        client, pool = RedisClient(redis, self.processor, costs.record), RedisClient(redis)
        before = replica_registry.open_async_redis, quotas.open_limit_windows
        replica_registry.open_async_redis = lambda *_, **__: client  # type: ignore[assignment]
        quotas.open_limit_windows = lambda _: (pool, RateWindows(redis))  # type: ignore[assignment,return-value]
        try:
            self.registry = replica_registry.ReplicaRegistry(settings)
            self._limits = quotas.RateLimiter(settings)
        finally:
            replica_registry.open_async_redis, quotas.open_limit_windows = before
        self.registry.versions, self.registry.ask = VersionPolicy(None), self._is_reachable
        self._fair = FairQueue(settings, self.registry)
        self._retry = ReplicaRetryPolicy(self.registry)

    async def serve(self, caller: Caller, service: str, work: Work, deadline_s: float) -> int:
        """Answer a request as the gateway's middleware and proxy do; the status that the caller gets."""
        began = self._clock.now
        try:
            await self._serve(caller, service, work, began + deadline_s)
        except (FoveaError, TimeoutError) as error:
            status = error.status if isinstance(error, FoveaError) else 504
        else:
            status = 200
            self.answers.seconds.append((self._clock.now, caller.tenant, self._clock.now - began))
        self.answers.statuses[status] += 1
        return status

    async def _is_reachable(self, replica: Replica) -> bool:
        """Whether a replica answers that has not renewed its record."""
        return replica.id in self._fleet

    async def _serve(self, caller: Caller, service: str, work: Work, deadline: float) -> None:
        await self.processor.work(self._costs.request + self._costs.route * len(self._fleet))
        await self._limits.count(caller)
        came = self._clock.now
        key = held_key(caller.tenant, work.key.hex()) if work.key is not None else None
        async with self._fair.slot(caller, service, deadline):
            self.answers.queue_s += self._clock.now - came
            state = RetryState(service, str(next(self._ids)), deadline, late=DeadlineExceeded, key=key)
            async with asyncio.timeout_at(deadline + 1):
                await self._retry.run(state, lambda replica: self._send(replica, work))

    async def _send(self, replica: Replica, work: Work) -> None:
        """Send a request to one replica, and tell the retry policy where that fails."""
        attempt, server = Dispatch(replica), self._fleet.get(replica.id)
        lost = NotReady("the simulated connection broke")
        try:
            async with attempt:
                await (server.answer(work) if server else _refuse())
        except ReplicaGone as gone:
            self.answers.retried += 1
            if not gone.was_sent:
                self.registry.mark_suspect(replica)
            raise UpstreamLost("gone", lost, is_unseen=not gone.was_sent, may_repeat=True) from gone
        except TimeoutError as error:
            if not attempt.is_aborted:
                raise
            raise UpstreamLost("it hangs", lost, is_unseen=False, may_repeat=True) from error
