"""Bad keys: counts the wrong credentials that come from each address; more than so many in a minute are 429.

A good key is answered from wherever it comes: behind a proxy all callers share an address. Knows nothing about keys.
"""

from __future__ import annotations

import math
import time

from fovea.errors import RateLimited

MAX_PER_MINUTE = 30
"""Wrong credentials that an address may send in a minute; the next ones are 429."""

_WINDOW_S = 60.0
_MAX_ADDRESSES = 10_000


class BadKeys:
    """Wrong credentials of the last minute, by address."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, int]] = {}

    def note(self, address: str) -> None:
        """Count one more wrong credential. Raises RateLimited: the address has sent too many."""
        now = time.monotonic()
        since, count = self._seen.get(address, (now, 0))
        if now - since >= _WINDOW_S:
            since, count = now, 0
        if len(self._seen) >= _MAX_ADDRESSES and address not in self._seen:
            self._forget(now)
        self._seen[address] = (since, count + 1)
        if count >= MAX_PER_MINUTE:
            detail = "Too many wrong keys came from this address."
            wait_s = math.ceil(since + _WINDOW_S - now)
            raise RateLimited(detail, hint=f"Check the key, and try again in {wait_s} s.", retry_after=wait_s)

    def _forget(self, now: float) -> None:
        """Forget addresses whose minute is over; where there are none, the one that came first."""
        kept = {address: seen for address, seen in self._seen.items() if now - seen[0] < _WINDOW_S}
        if len(kept) >= _MAX_ADDRESSES:
            del kept[next(iter(kept))]
        self._seen = kept
