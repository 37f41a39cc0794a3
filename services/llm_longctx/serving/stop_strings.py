"""Stop texts across token borders: text is held back while a stop may be beginning in it. Knows nothing but text."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Stops"]


class Stops:
    """Lets text through up to the first stop text.

    Attributes:
        hit: Whether a stop was met; nothing passes after it.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.hit = False

    def feed(self, text: str) -> str:
        """Text that may be shown now that `text` came."""
        if self.hit:
            return ""
        self._held += text
        met = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if met:
            self.hit = True
            return self._release(min(met), forget=True)
        return self._release(len(self._held) - self._beginning())

    def end(self) -> str:
        """What was held back, when no more text comes."""
        return "" if self.hit else self._release(len(self._held))

    def _beginning(self) -> int:
        """Length of the longest tail that begins a stop."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self._stops):
                return size
        return 0

    def _release(self, size: int, *, forget: bool = False) -> str:
        shown, self._held = self._held[:size], "" if forget else self._held[size:]
        return shown
