"""A fuzz harness: one decoder of bytes from outside, what it is fed, and what counts as a good end."""

import gc
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from starlette.exceptions import HTTPException

from fovea.errors import FoveaError

Answer = TypeVar("Answer")

MAX_CPU_S = 5.0
"""Processor seconds that an input of a few kilobytes may take, on a busy machine too."""


class SlowInput(AssertionError):
    """An input that takes a decoder far longer than its size explains."""


@dataclass(frozen=True)
class Harness:
    """One decoder; `run` may raise a `FoveaError` that is the caller's fault, and nothing else."""

    run: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...] = ()
    """Pieces that edits insert, next to random bytes: what the format gives a meaning."""
    repair: Callable[[bytes], bytes] = bytes
    """Mends an edited file where a checksum or a length would refuse it before anything is read."""

    def check(self, data: bytes) -> None:
        """Decode within `MAX_CPU_S` of this process; an error that callers may see, and is theirs, is a good end."""
        if (seconds := self._time(data)) > MAX_CPU_S:
            gc.collect()  # a collection of what others left is not a fault of this input: once more
            if self._time(data) > MAX_CPU_S:
                raise SlowInput(f"{seconds:.1f} processor seconds for {len(data):,} bytes")

    def _time(self, data: bytes) -> float:
        begun = time.process_time()
        ask(self.run, data)
        return time.process_time() - begun


def ask(call: Callable[..., Answer], *given: Any) -> Answer | None:
    """The answer of a call; None where it refuses what it is given, with an error that is the caller's fault."""
    try:
        return call(*given)
    except (FoveaError, HTTPException) as error:
        if (error.status if isinstance(error, FoveaError) else error.status_code) >= 500:
            raise
        return None


def with_file(read: Callable[[Path], object], suffix: str) -> Callable[[bytes], object]:
    def run(data: bytes) -> object:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"x{suffix}"
            file.write_bytes(data)
            return read(file)

    return run
