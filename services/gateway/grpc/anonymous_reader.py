"""Anonymous reader: reads the short messages of callers without a key (health), apart from everybody else's.

Few are read at a time, and a new call pushes out the one that has waited longest: a caller that opens calls and sends
nothing keeps nobody from an answer, since an honest message comes with its call. Knows nothing about what they ask.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from fovea.errors import DeadlineExceeded, Malformed, QueueFull, TooLarge

MAX_READS: Final = 3
"""Messages that are read at a time; gRPC may hold the largest message for each."""

MAX_BYTES: Final = 1024
"""Bytes of such a message: none has more than a name."""

READ_TIMEOUT_S: Final = 0.5
"""Time for a message: an honest one comes with its call. gRPC shows no message before all of it has arrived, so this
also bounds what it holds for one: what a line carries meanwhile."""


class AnonymousReader:
    """Reads one message of each call."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Timeout, None] = {}  # oldest first

    async def read(self, messages: AsyncIterator[bytes]) -> bytes:
        """Read the one message of a call.

        Raises:
            QueueFull: Newer calls pushed this one out.
            DeadlineExceeded: The message does not arrive in time.
            TooLarge: It has more than a name.
            Malformed: There is none.
        """
        if len(self._waiting) >= MAX_READS:
            self._push_out(next(iter(self._waiting)))
        limit = asyncio.timeout(READ_TIMEOUT_S)
        self._waiting[limit] = None
        try:
            async with limit:
                message = await anext(messages, None)
        except TimeoutError as error:
            if limit not in self._waiting:
                raise QueueFull("Newer calls came before the message of this one.", retry_after=1) from error
            raise DeadlineExceeded("The message did not arrive in time.", hint="Send it with the call.") from error
        finally:
            self._waiting.pop(limit, None)
        if message is None:
            raise Malformed("The call ended without a message.")
        if len(message) > MAX_BYTES:
            raise TooLarge(f"This method takes messages of at most {MAX_BYTES:,} bytes.")
        return message

    def _push_out(self, oldest: asyncio.Timeout) -> None:
        del self._waiting[oldest]
        if not oldest.expired():
            oldest.reschedule(0)
