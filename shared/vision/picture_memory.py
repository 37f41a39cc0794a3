"""Memory budget for pictures: what decoding and answering one will take is reserved before it is taken.

All models of a process share one budget. A picture that needs more than all of it is refused; one that needs what
others hold at the moment waits for them. Knows nothing about formats.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np

from shared.errors import QueueFull, TooLarge

DEFAULT_MEMORY_BYTES = 2**30
"""What the pictures of a process may take where nobody says otherwise."""

_PATIENCE_S = 10.0
"""Longest wait for memory that other pictures hold."""


class PictureMemory:
    """Bytes that pictures may take together. Safe to share between threads."""

    def __init__(self, total: int = DEFAULT_MEMORY_BYTES, patience_s: float = _PATIENCE_S) -> None:
        """Allow `total` bytes; a reservation waits for up to `patience_s` until others are given back."""
        self.total = self._left = total
        self._patience_s = patience_s
        self._freed = threading.Condition(threading.RLock())  # a picture may be let go in the middle of a call

    @contextmanager
    def reserve(self, size: int, what: str) -> Iterator[None]:
        """Hold `size` bytes for as long as the block runs; `what` begins the error's sentence.

        Raises:
            TooLarge: It is more than there is in all.
            QueueFull: Others hold it, and did not give it back in time.
        """
        if size > self.total:
            detail = (
                f"{what} needs about {_megabytes(size)} of memory; a replica has {_megabytes(self.total)} for that."
            )
            raise TooLarge(detail, hint="Scale it before sending, or raise FOVEA_PICTURE_MEMORY_BYTES.")
        self._take(size)
        try:
            yield
        finally:
            self._release(size)

    def keep(self, pixels: np.ndarray) -> np.ndarray | None:
        """The pixels, counted for as long as anybody holds them; None where that would leave others little."""
        size = pixels.nbytes
        with self._freed:
            if self._left - size < self.total // 2:
                return None
            self._left -= size
        weakref.finalize(pixels, self._release, size)
        return pixels

    def _release(self, size: int) -> None:
        with self._freed:
            self._left += size
            self._freed.notify_all()

    def _take(self, size: int) -> None:
        until = time.monotonic() + self._patience_s
        with self._freed:
            if not self._freed.wait_for(lambda: self._left >= size, timeout=until - time.monotonic()):
                detail = f"Other pictures hold the memory of this replica; {_megabytes(size)} are needed."
                raise QueueFull(detail, hint="Try again in a moment.", retry_after=2)
            self._left -= size


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


@cache
def shared_memory(total: int) -> PictureMemory:
    """The one budget of this process of `total` bytes."""
    return PictureMemory(total)
