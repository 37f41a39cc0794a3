"""Lock on a path of an object store: one writer at a time, over machines, also after the death of one.

Each holder creates the object of the next number, which only one can; the highest number holds. Its holder rewrites it
while it works. One that has not changed for `SILENT_S` on a waiter's own clock is dead, so clocks need not agree.
"""

import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from fovea.errors import FoveaError
from shared.storage.object_store import ObjectStore
from shared.telemetry import log

SILENT_S = 6.0
"""A holder that is silent for so long has lost its lock."""

_RENEW_S = SILENT_S / 4
_FREE = b"free"


class ObjectLock:
    """The lock of one writer, as a context manager; the objects of its store are the lock's alone.

    `on_wait` is called before each wait for another holder, every `poll_s`, and may raise to give up.
    """

    def __init__(self, store: ObjectStore, on_wait: Callable[[], None], poll_s: float = 0.1) -> None:
        self._store, self._on_wait, self._poll_s = store, on_wait, poll_s
        self._number = 0
        self._is_done = threading.Event()
        self._renewal: threading.Thread | None = None

    def __enter__(self) -> Self:
        seen, since = (0, b""), time.monotonic()
        while True:
            found = self._current()
            if found != seen:
                seen, since = found, time.monotonic()
            number, content = found
            if (content in {b"", _FREE} or time.monotonic() - since > SILENT_S) and self._take(number + 1):
                self._renewal = threading.Thread(target=self._renew, name="object-lock", daemon=True)
                self._renewal.start()
                return self
            self._on_wait()
            time.sleep(self._poll_s)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_done.set()
        if self._renewal is not None:
            self._renewal.join()
        if self.is_held():
            self._store.put(str(self._number), _FREE)

    def is_held(self) -> bool:
        """Whether the lock is still ours: a holder that slept too long finds that it is another's."""
        return self._current()[0] == self._number

    def _take(self, number: int) -> bool:
        if not self._store.create(str(number), os.urandom(8)):
            return False
        self._number = number
        if not self.is_held():
            # A waiter that looked long ago: the numbers have moved on.
            self._store.delete(str(number))
            return False
        self._store.delete(*(name for name in self._store.list_names() if int(name) < number))
        return True

    def _renew(self) -> None:
        while not self._is_done.wait(_RENEW_S):
            try:
                if not self.is_held():
                    return
                self._store.put(str(self._number), os.urandom(8))
            except FoveaError as error:
                log().warning("a lock on objects was not renewed", reason=error.detail)

    def _current(self) -> tuple[int, bytes]:
        """Number and content of the newest object; 0 where there is none."""
        number = max(map(int, self._store.list_names()), default=0)
        return number, (self._store.get(str(number)) or b"") if number else b""
