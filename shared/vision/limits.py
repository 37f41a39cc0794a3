"""Limits of pictures: how large one may be, and how much memory all of them may take.

A size is judged from the header, before a pixel is decoded. Memory for decoding and answering a picture is reserved
before it is taken: all models of a process share one budget. A picture that needs more than all of it is refused; one
that needs what others hold at the moment waits for them. Knows nothing about formats.
"""

import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from fovea.errors import Malformed, QueueFull, TooLarge
from shared.registry import Card, LoadContext
from shared.settings import Settings

DEFAULT_MEMORY_BYTES = 2**30
"""Default memory for the pictures of a process."""

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

        Raises TooLarge: it is more than there is in all; QueueFull: others hold it, and did not give it back in time.
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


@dataclass(frozen=True, slots=True)
class DecodeBounds:
    """How large a picture may be; all but `bytes` are judged from the header, before a pixel is decoded.

    Attributes:
        bytes: Size of the file.
        pixels: Width times height.
        min_side: Shortest side, pixels.
        max_side: Longest side, pixels.
        memory: Budget in which decoding reserves its memory.
    """

    bytes: int = 64 * 2**20
    pixels: int = 64_000_000
    min_side: int = 1
    max_side: int = 16_384
    memory: PictureMemory = field(
        default_factory=lambda: shared_memory(DEFAULT_MEMORY_BYTES), repr=False, compare=False
    )


DEFAULT_BOUNDS = DecodeBounds()
"""Default bounds."""


def platform_bounds(settings: Settings) -> DecodeBounds:
    """Bounds of what a route decodes itself, before a model is asked: those of the settings."""
    return DecodeBounds(
        bytes=settings.max_body_bytes,
        pixels=settings.max_pixels,
        max_side=settings.max_side,
        memory=shared_memory(settings.picture_memory_bytes),
    )


def check_size(width: int, height: int, bounds: DecodeBounds) -> None:
    """Check the size that a header states. Raises TooLarge: it is over the bounds; Malformed: a side is below them."""
    size = f"The picture is {width:,}×{height:,} pixels"
    hint = "Scale it before sending."
    if width * height > bounds.pixels:
        raise TooLarge(f"{size}, {width * height:,} in all; the limit is {bounds.pixels:,}.", hint=hint)
    if max(width, height) > bounds.max_side:
        raise TooLarge(f"{size}; the longest side may have {bounds.max_side:,}.", hint=hint)
    if min(width, height) < bounds.min_side:
        raise Malformed(f"{size}; the shortest side must have at least {bounds.min_side:,}.", hint=hint)


def decode_bounds(card: Card, context: LoadContext) -> DecodeBounds:
    """Bounds of the pictures that a served model decodes: what its Card says, within what `context` allows."""
    limits, ours, options = card.limits, DEFAULT_BOUNDS, context.options
    pixels, side = int(options.get("max_pixels", ours.pixels)), int(options.get("max_side", ours.max_side))
    return DecodeBounds(
        bytes=int(options.get("max_body_bytes", ours.bytes)),
        pixels=min(pixels, limits.max_pixels or pixels),
        min_side=limits.min_side or ours.min_side,
        max_side=min(side, limits.max_side or side),
        memory=shared_memory(int(options.get("picture_memory_bytes", DEFAULT_MEMORY_BYTES))),
    )
