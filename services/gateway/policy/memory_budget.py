"""Memory budget for request bodies, shared by HTTP and gRPC, and the turns in which gRPC messages are read.

gRPC does not say how large a message will be before it is here, so the largest size is reserved while one is read, and
all but its real size given back afterwards. Knows nothing about transports.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from shared.errors import QueueFull

MAX_READS_PER_TENANT = 4
"""Messages of one tenant that are read at a time."""

READ_POLL_S = 0.005
"""Time between two looks for memory."""


@dataclass(slots=True)
class MemoryBudget:
    """Memory budget, in bytes, that the kept bodies of all requests share."""

    left: int

    def take(self, size: int) -> bool:
        """Reserve `size` bytes; False when there is not enough."""
        if size > self.left:
            return False
        self.left -= size
        return True


@dataclass(slots=True)
class MessageReader:
    """Turns for reading messages whose size is not known before.

    Attributes:
        budget: Shared with HTTP bodies.
        largest: Bytes that a message may have.
    """

    budget: MemoryBudget
    largest: int
    _reading: Counter[str] = field(default_factory=Counter)

    @asynccontextmanager
    async def turn(self, tenant: str, wait_s: float) -> AsyncIterator[None]:
        """Hold memory for the largest message while the block reads one.

        Raises:
            QueueFull: Others held the memory for `wait_s`.
        """
        await self._reserve(tenant, wait_s)
        try:
            yield
        finally:
            self.budget.left += self.largest
            self._reading[tenant] -= 1
            if not self._reading[tenant]:
                del self._reading[tenant]

    async def _reserve(self, tenant: str, wait_s: float) -> None:
        until = asyncio.get_running_loop().time() + wait_s
        while self._reading[tenant] >= MAX_READS_PER_TENANT or not self.budget.take(self.largest):
            if asyncio.get_running_loop().time() > until:
                detail = "There is no memory left to read this message."
                raise QueueFull(detail, hint="Try again in a moment.", retry_after=1)
            await asyncio.sleep(READ_POLL_S)
        self._reading[tenant] += 1
