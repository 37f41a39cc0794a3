"""Replicas of one service as a gateway sees them, and the requests under way to each. Knows no clock and no Redis."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from fovea.api.replica import ReplicaRecord


class Dispatch:
    """One request under way to a replica. Ends with `TimeoutError` when the replica hangs and another is ready."""

    __slots__ = ("_replica", "_timeout")

    def __init__(self, replica: Replica) -> None:
        self._replica, self._timeout = replica, asyncio.timeout(None)

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        self._replica.attempts.add(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._replica.attempts.discard(self)
        await self._timeout.__aexit__(kind, error, trace)

    def abort(self) -> None:
        """End it now."""
        if not self._timeout.expired():
            self._timeout.reschedule(0)

    @property
    def is_aborted(self) -> bool:
        """Whether a `TimeoutError` is this one's."""
        return self._timeout.expired()


@dataclass(eq=False, slots=True)
class Replica:
    """One replica as this gateway sees it; `changed` is when its record last moved (`time.monotonic()`)."""

    record: ReplicaRecord
    changed: float
    in_flight: int = 0
    suspect_until: float = 0.0
    attempts: set[Dispatch] = field(default_factory=set)

    @property
    def id(self) -> str:
        """The replica's id."""
        return self.record.id

    @property
    def slots(self) -> int:
        """Requests that it works on at once."""
        return self.record.slots


@dataclass(slots=True)
class ServiceState:
    """The replicas of one service, those that could not start, and when one was last ready."""

    replicas: dict[str, Replica] = field(default_factory=dict)
    failed: dict[str, Replica] = field(default_factory=dict)
    last_ready: float = float("-inf")

    def explain_silence(self, now: float, *, is_alive: bool) -> str:
        """Explain in half a sentence why no replica is ready, by the last record of one."""
        last = max((*self.replicas.values(), *self.failed.values()), key=lambda replica: replica.changed)
        silent_s = now - last.changed
        if last.record.trouble:
            return f"the last one reported {last.record.trouble.removesuffix('.')!r} {max(silent_s, 0):.0f} s ago"
        if is_alive:
            return "its replicas are still loading"
        memory = f", with {last.record.memory:.0%} of its memory taken" if last.record.memory else ""
        return f"the last one fell silent {silent_s:.0f} s ago{memory}, and does not answer"
