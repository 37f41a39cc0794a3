"""Memory of engines that are idle: what a run needed is given back some seconds after the last one.

ONNX Runtime keeps the memory of its largest run, which makes the next one fast: a detector holds hundreds of megabytes
for pictures that nobody sends. One thread serves all engines, and sleeps while none has anything to give back.
"""

import threading
import time
from typing import Final, Protocol
from weakref import WeakKeyDictionary

IDLE_S: Final = 10.0
"""Seconds without a run after which an engine gives memory back."""


class Shrinkable(Protocol):
    """An engine that holds memory between runs."""

    def shrink(self) -> None:
        """Give back the memory of runs; the next one takes it anew."""


class IdleShrinker:
    """Calls `shrink` of each engine once it has been idle."""

    def __init__(self, idle_s: float = IDLE_S) -> None:
        self._idle_s = idle_s
        self._last: WeakKeyDictionary[Shrinkable, float] = WeakKeyDictionary()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def note_run(self, engine: Shrinkable) -> None:
        """Note that an engine has run."""
        with self._changed:
            is_first = not self._last
            self._last[engine] = time.monotonic()
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._watch, name="idle-engines", daemon=True)
                self._thread.start()
            if is_first:
                self._changed.notify()

    def _watch(self) -> None:
        while True:
            with self._changed:
                while not self._last:
                    self._changed.wait()
            time.sleep(self._idle_s / 2)
            for engine in self._take_idle():
                engine.shrink()

    def _take_idle(self) -> list[Shrinkable]:
        with self._changed:
            idle = [engine for engine, last in self._last.items() if time.monotonic() - last >= self._idle_s]
            for engine in idle:
                del self._last[engine]
            return idle


IDLE_SHRINKER: Final = IdleShrinker()
"""The one of this process."""
