"""Watched work: what runs on threads for which call, so that work that outlives its deadline is noticed.

Python can't stop a thread. A call that is over for its caller may still hold one: in a model, a parser, a library.
Knows nothing about what is done about it.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, TypeVar

from shared.registry import CallContext

Answer = TypeVar("Answer")

OVERDUE_S: Final = 10.0
"""How long work may go on after its deadline: what looks at it ends much sooner."""

CURRENT_RUN: Final[ContextVar[CallContext | None]] = ContextVar("fovea_current_run", default=None)
"""The call that is being answered; work that is given to a thread is done for it."""


class WatchedWork:
    """The work on threads of one replica."""

    def __init__(self) -> None:
        self._running: dict[int, tuple[str, CallContext, float]] = {}
        self._numbers = itertools.count()

    @contextmanager
    def watch(self, name: str, run: CallContext) -> Iterator[None]:
        """Note that work for a call is being done while the block runs, on whichever thread."""
        number = next(self._numbers)
        self._running[number] = (name, run, time.monotonic())
        try:
            yield
        finally:
            del self._running[number]

    def list_overdue(self, lasting_s: float = 0.0) -> list[str]:
        """Names of the work that has been overdue for so many seconds: its call's deadline passed long before.

        Work that begins after the deadline, as for a frame of an endless stream, has as long from its beginning.
        """
        latest, running = time.monotonic() - OVERDUE_S - lasting_s, list(self._running.values())
        return [n for n, run, begun in running if run.deadline is not None and max(run.deadline, begun) < latest]


class WatchedExecutor(ThreadPoolExecutor):
    """A thread pool whose work is watched for the call that gives it."""

    def __init__(self, work: WatchedWork, max_workers: int | None = None, thread_name_prefix: str = "") -> None:
        super().__init__(max_workers, thread_name_prefix)
        self._work = work

    def submit(self, fn: Callable[..., Answer], /, *args: Any, **kwargs: Any) -> Future[Answer]:
        """Run a function on a thread, watched for the call that is being answered."""
        run = CURRENT_RUN.get()
        if run is None:
            return super().submit(fn, *args, **kwargs)
        return super().submit(self._watched, run, fn, *args, **kwargs)

    def _watched(self, run: CallContext, fn: Callable[..., Answer], *args: Any, **kwargs: Any) -> Answer:
        with self._work.watch(getattr(fn, "__qualname__", "work on a thread"), run):
            return fn(*args, **kwargs)
