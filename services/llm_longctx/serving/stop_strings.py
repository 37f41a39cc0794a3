"""Stop strings across token borders: text is held back while a stop string may be beginning in it. Knows only text."""

from collections.abc import Sequence

from services.llm_longctx.serving.tools.tool_parser import split_at


class StopStringFilter:
    """Lets text through up to the first stop string, or up to its end.

    Attributes:
        hit: The stop string that was met; nothing passes after it.
    """

    def __init__(self, stops: Sequence[str], *, is_kept: bool = False) -> None:
        self._stops = [stop for stop in stops if stop]
        self._is_kept = is_kept
        self._held_back = ""
        self.hit: str | None = None

    def feed(self, text: str) -> str:
        """Text that may be shown now that `text` came."""
        if self.hit is not None:
            return ""
        self._held_back += text
        met = [(place, stop) for stop in self._stops if (place := self._held_back.find(stop)) >= 0]
        if met:
            place, self.hit = min(met, key=lambda one: one[0])
            return self._release(place + len(self.hit) * self._is_kept, forget=True)
        tails = (split_at(self._held_back, stop)[1] for stop in self._stops)  # in which a stop may be beginning
        return self._release(len(self._held_back) - max(map(len, tails), default=0))

    def skip(self, text: str) -> str:
        """Text that may be shown now that `text` came, in which no stop string counts."""
        return "" if self.hit is not None else self._release(len(self._held_back)) + text

    def end(self) -> str:
        """Text that was held back, when no more text comes."""
        return "" if self.hit is not None else self._release(len(self._held_back))

    def _release(self, size: int, *, forget: bool = False) -> str:
        shown, self._held_back = self._held_back[:size], "" if forget else self._held_back[size:]
        return shown
