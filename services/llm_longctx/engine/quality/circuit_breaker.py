"""Drift gate: whether dense serves in the place of a method, judged by answers that were compared.

Findings lose weight with time and are forgotten in the end, so a verdict is about the texts of today. Pure: it gets
what was found and when; knows no model and no clock.
"""

from collections import deque

WINDOW = 50
"""Answers that are looked at together."""

LEAST = 10
"""Answers before anything is said."""

HALF_LIFE_S = 6 * 3600.0
"""After so long a finding counts half."""

FORGOTTEN_S = 24 * 3600.0
"""After so long it does not count at all."""


class FidelityCircuitBreaker:
    """Served, or held back with dense in its place.

    Below the floor it is held back. It comes back half-way between the floor and full agreement, so that one answer
    more or less does not switch it to and fro; or when so long ago was anything found that nothing is known of it.

    Attributes:
        held: Whether it is held back, as of the last judgement.
    """

    def __init__(self, floor: float) -> None:
        self.held = False
        self._floor = floor
        self._found: deque[tuple[float, float]] = deque(maxlen=WINDOW)  # seconds, agreement

    def __len__(self) -> int:
        """Findings that it is judged by."""
        return len(self._found)

    @property
    def back(self) -> float:
        """The median agreement from which it is served again."""
        return (self._floor + 1) / 2

    def add(self, agreement: float, now: float) -> None:
        """Top-1 agreement 0 … 1 of one answer, found at `now` (seconds, never before the last one)."""
        self._found.append((now, agreement))
        self.judge(now)

    def judge(self, now: float) -> bool:
        """Whether it is held back at `now`."""
        while self._found and now - self._found[0][0] >= FORGOTTEN_S:
            self._found.popleft()
        if not self._found:
            self.held = False
        elif len(self._found) >= LEAST:
            self.held = self.median(now) < (self.back if self.held else self._floor)
        return self.held

    def median(self, now: float) -> float:
        """The agreement that half of the weight does not exceed; of an even number alike, the lower of the middle."""
        weighed = sorted((agreement, 0.5 ** ((now - when) / HALF_LIFE_S)) for when, agreement in self._found)
        left = sum(weight for _, weight in weighed) / 2
        for agreement, weight in weighed:
            left -= weight
            if left <= 1e-12:
                return agreement
        return 1.0
