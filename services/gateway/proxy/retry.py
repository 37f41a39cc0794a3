"""Retry policy of the gateway, for HTTP and gRPC alike: which replica is tried next, and when to give up.

A request that may be sent twice goes to another replica or, with growing pauses and until its deadline, to the next one
that appears. Knows nothing about how a request is sent.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fovea.errors import FoveaError, NotReady, TooLarge
from services.gateway.routing.affinity import AffinityKey
from services.gateway.routing.replica import Replica
from services.gateway.routing.replica_registry import ReplicaRegistry
from shared.telemetry import Span, log, span

Answer = TypeVar("Answer")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0

MAX_LOST_CONNECTIONS = 3
"""Connections that may break under one request before the request itself is suspected of killing replicas."""


class UpstreamLost(Exception):
    """A replica is out of reach, and nothing of its answer has been passed on.

    Attributes:
        answer: The error that the caller gets if the request is not sent again.
        is_unseen: Whether the replica did nothing with the request.
        may_repeat: Whether the request can be sent again, and that does no harm.
    """

    def __init__(self, reason: str, answer: Exception, *, is_unseen: bool, may_repeat: bool) -> None:
        super().__init__(reason)
        self.answer, self.is_unseen, self.may_repeat = answer, is_unseen, may_repeat


@dataclass(slots=True)
class RetryState:
    """Attempts for one request.

    Attributes:
        service: Whose replicas may answer.
        request_id: Id of the request, for the log.
        deadline: Event-loop time after which nothing is tried any more.
        late: Kind of the error raised then.
        key: Hashes of the state that a replica may hold of it, if known.
    """

    service: str
    request_id: str
    deadline: float
    late: type[FoveaError] = NotReady
    key: AffinityKey | None = None
    tried: set[str] = field(default_factory=set)
    lost_connections: int = 0
    pause_s: float = FIRST_PAUSE_S

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - asyncio.get_running_loop().time()

    async def rest(self) -> None:
        """Wait before the next round over the replicas."""
        await asyncio.sleep(max(min(self.pause_s, self.left_s), 0))
        self.pause_s = min(2 * self.pause_s, LONGEST_PAUSE_S)
        self.tried.clear()


class ReplicaRetryPolicy:
    """Tries replicas of a service until one answers or trying again makes no sense."""

    def __init__(self, registry: ReplicaRegistry) -> None:
        self._registry = registry

    async def run(self, state: RetryState, attempt: Callable[[Replica], Awaitable[Answer]]) -> Answer:
        """Send a request to one replica after another, and keep its `state` up to date.

        `attempt` raises `UpstreamLost` where another try may be worth it. Raises NotReady: no replica is there, or came
        back in time; or `UpstreamLost.answer`, where the request is not sent again.
        """
        while True:
            replica = await self._wait_for_replica(state)
            replica.in_flight += 1
            try:
                return await attempt(replica)
            except UpstreamLost as lost:
                await self._require_retryable(lost, replica, state)
            finally:
                replica.in_flight -= 1
            if replica.id in state.tried:
                await state.rest()
            state.tried.add(replica.id)

    def has_untried(self, replica: Replica, state: RetryState) -> bool:
        """Whether another ready replica than this one has not been tried in this round."""
        ready = self._registry.list_ready(state.service)
        return any(other is not replica and other.id not in state.tried for other in ready)

    def build_not_ready(self, service: str) -> NotReady:
        """Build the error for a service without a ready replica."""
        detail = f"No replica of {service} is ready: {self._registry.explain_unready(service)}."
        return NotReady(detail, hint="`/readyz` shows which services are ready.", retry_after=5)

    async def _wait_for_replica(self, state: RetryState) -> Replica:
        with self._registry.on_demand.count_waiting(state.service):
            while (replica := self._registry.pick(state.service, state.tried, state.key)) is None:
                self._require_recovering(state)
                await self._registry.on_demand.want(state.service)
                await state.rest()
        return replica

    def _require_recovering(self, state: RetryState) -> None:
        """Check that waiting for a replica makes sense: there was one lately, and there is time left."""
        is_on_demand = state.service in self._registry.on_demand.names
        if not is_on_demand and not self._registry.is_recovering(state.service):
            raise self.build_not_ready(state.service)
        if state.left_s <= 0:
            raise self.build_not_ready(state.service) if is_on_demand else _build_late(state)

    async def _require_retryable(self, lost: UpstreamLost, replica: Replica, state: RetryState) -> None:
        """Check that a lost request may be sent again: not if it kills replicas, or leaves something behind."""
        state.lost_connections += not lost.is_unseen
        log().warning("lost a replica", request_id=state.request_id, replica=replica.id, reason=str(lost))
        if not lost.is_unseen and await self._registry.has_died_of_memory(replica):
            raise _build_out_of_memory(replica, state) from lost
        if not lost.may_repeat or state.lost_connections > MAX_LOST_CONNECTIONS:
            raise lost.answer from lost
        if state.left_s <= 0:
            raise _build_late(state) from lost


def begin_attempt(name: str, replica: Replica, address: str | None, facts: Mapping[str, Any]) -> Span:
    """Begin the client span of one attempt, whose id the replica gets."""
    served = {"server.address": address, "fovea.service": replica.record.service, "fovea.replica": replica.id}
    return span(name, {**facts, **served}, kind="client")


def _build_out_of_memory(replica: Replica, state: RetryState) -> FoveaError:
    """The error for a death by memory: this request's doing, unless others were in the same replica."""
    if replica.in_flight > 1:
        detail = f"A replica of {state.service} ran out of memory; this request was in it, and may be the reason."
        return NotReady(detail, hint="Send the request again, alone or smaller.", retry_after=5)
    detail = f"This request took more memory than a replica of {state.service} has."
    hint = "Send less at a time (smaller pictures, fewer rows, shorter texts), or raise FOVEA_REPLICA_MEMORY_BYTES."
    return TooLarge(detail, hint=hint)


def _build_late(state: RetryState) -> FoveaError:
    return state.late(f"No replica of {state.service} answered before the deadline.", hint="Send the request again.")
