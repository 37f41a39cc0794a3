"""Replicas that renew their records late: where all of a service do, they are asked whether they serve on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from services.gateway.routing.replica import Replica
from shared.jobs.redis_client import cancel_tasks
from shared.telemetry import log

Ask = Callable[[Replica], Awaitable[bool]]
"""Asks a replica whether it serves."""


class SilentReplicas:
    """The questions under way. Belongs to one event loop."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Note answers at the time of `clock`."""
        self._clock = clock
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
            replica.changed = max(replica.changed, self._clock())
