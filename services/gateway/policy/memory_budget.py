"""Memory budget for request bodies, shared by HTTP and gRPC, and the turns in which gRPC messages are read.

A tenant may hold half of what the others leave: one alone half of the budget, a second one a quarter, and so on. So
some is left for the next one. gRPC does not say how large a message will be before it is here: the largest size is
reserved while one is read, and all but its real size released afterwards. Knows nothing about transports.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from fovea.errors import QueueFull

MAX_READS_PER_TENANT = 4
"""Messages of one tenant that are read at a time."""

MAX_WAITING_PER_TENANT = 64
"""Calls of one tenant that wait to have their message read."""

READ_POLL_S = 0.005
"""Time between two looks for memory."""


@dataclass(slots=True)
class MemoryBudget:
    """Memory budget, in bytes, that the kept bodies of all requests share.

    Attributes:
        left: Bytes that nobody holds.
        shared: Whether several tenants share it; a single one may hold all of it.
    """

    left: int
    shared: bool = False
    _held: Counter[str] = field(default_factory=Counter)

    def take(self, size: int, tenant: str = "") -> bool:
        """Reserve `size` bytes for a tenant; False when there is not enough, or not for this tenant."""
        if size > self.left:
            return False
        held = self._held[tenant]
        # A tenant may hold half of the room that the others leave, and its first piece in any case.
        if self.shared and held and 2 * (held + size) > held + self.left:
            return False
        self.take_arrived(size, tenant)
        return True

    def take_arrived(self, size: int, tenant: str) -> None:
        """Count bytes that are in memory already, whether there is room for them or not."""
        self.left -= size
        self._held[tenant] += size

    def release(self, size: int, tenant: str = "") -> None:
        """Return bytes of a tenant."""
        self.take_arrived(-size, tenant)
        if not self._held[tenant]:
            del self._held[tenant]


class MessageReader:
    """Turns for reading messages whose size is not known before."""

    def __init__(self, budget: MemoryBudget, largest: int) -> None:
        """Reserve from `budget`, which HTTP bodies share; `largest` is the most bytes that a message may have."""
        self.budget, self.largest = budget, largest
        self._turns: dict[str, asyncio.Semaphore] = {}
        self._present: Counter[str] = Counter()

    @asynccontextmanager
    async def turn(self, tenant: str, wait_s: float) -> AsyncIterator[None]:
        """Hold memory for the largest message while the block reads one.

        Raises QueueFull: others held the memory for `wait_s`, or too many calls of this tenant wait.
        """
        if self._present[tenant] >= MAX_READS_PER_TENANT + MAX_WAITING_PER_TENANT:
            detail = f"{MAX_WAITING_PER_TENANT} of your calls wait to be read, which is the limit."
            raise QueueFull(detail, hint="Send fewer at a time, and each message with its call.", retry_after=1)
        self._present[tenant] += 1
        turns = self._turns.setdefault(tenant, asyncio.Semaphore(MAX_READS_PER_TENANT))
        try:
            async with asyncio.timeout(wait_s) as limit, turns:
                while not self.budget.take(self.largest, tenant):  # noqa: ASYNC110  # bodies release it in many places
                    await asyncio.sleep(READ_POLL_S)
                limit.reschedule(None)
                try:
                    yield
                finally:
                    self.budget.release(self.largest, tenant)
        except TimeoutError as error:
            if not limit.expired():
                raise
            detail = "There is no memory left to read this message."
            raise QueueFull(detail, hint="Try again in a moment.", retry_after=1) from error
        finally:
            self._present[tenant] -= 1
            if not self._present[tenant]:
                del self._present[tenant]
                self._turns.pop(tenant, None)
