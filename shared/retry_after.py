"""Retry-After of callers that are sent away: when a place is free, by how long places were held lately."""

import time
from collections.abc import Hashable
from typing import Final

_MIN_S: Final = 1.0
_MAX_S: Final = 60.0
_WEIGHT: Final = 0.2
"""Weight of the last place that was freed in the mean of how long places are held."""


class PlaceEstimate:
    """Estimates when a place is free. Each caller that is sent away gets a later time, so that not all come at once.

    Used by one thread, or under a lock of whoever owns it.
    """

    def __init__(self) -> None:
        self._begun: dict[Hashable, float] = {}
        self._mean_s = 0.0
        self._sent_away = 0

    def enter(self, holder: Hashable) -> None:
        """Note who takes a place."""
        self._begun[holder] = time.monotonic()

    def leave(self, holder: Hashable) -> None:
        """Note that a place is free again; a holder that is unknown is passed over."""
        if (begun := self._begun.pop(holder, None)) is None:
            return
        held_s = time.monotonic() - begun
        self._mean_s = held_s if not self._mean_s else self._mean_s + _WEIGHT * (held_s - self._mean_s)
        self._sent_away = max(self._sent_away - 1, 0) if self._begun else 0

    def send_away(self) -> float:
        """Estimate the seconds after which the caller that is sent away now finds a place."""
        self._sent_away += 1
        count, now = max(len(self._begun), 1), time.monotonic()
        age_s = sum(now - begun for begun in self._begun.values()) / count
        return min(max(self._sent_away * max(self._mean_s, age_s) / count, _MIN_S), _MAX_S)
