"""Work in pieces on a served model's scheduler, behind all other requests, and the wait for its result.

Knows the scheduler; knows nothing about what is evaluated.
"""

import queue
import threading
import time
from collections.abc import Generator
from typing import Any, TypeVar

from fovea.errors import Cancelled
from services.llm_longctx.engine.scheduler import Scheduler
from shared.registry import CallContext

POLL_S = 0.005
"""Seconds between two checks whether an answer is complete."""

T = TypeVar("T")


def run_when_idle(scheduler: Scheduler[Any], work: Generator[None, None, T], run: CallContext) -> T:
    """Do work on the scheduler's thread while no request waits; return its result, or raise its error.

    Raises:
        Cancelled: The caller went away, or requests needed the memory.
    """
    results: queue.SimpleQueue[T | Exception | None] = queue.SimpleQueue()
    is_abandoned = threading.Event()

    def do_piecewise() -> Generator[None, None, None]:
        try:
            yield  # started before it is handed over: only a started generator runs `finally` when it is closed
            while not is_abandoned.is_set():
                try:
                    next(work)
                except StopIteration as end:
                    results.put(end.value)
                    return
                except Exception as error:  # noqa: BLE001  # raised again where the result is waited for
                    results.put(error)
                    return
                yield
        finally:
            work.close()
            results.put(None)

    next(begun := do_piecewise())
    scheduler.run_when_idle(begun)
    try:
        while results.empty():
            run.check()
            time.sleep(POLL_S)
    finally:
        is_abandoned.set()
    found = results.get()
    if isinstance(found, Exception):
        raise found
    if found is None:
        detail = "The evaluation was given up: requests needed its memory."
        raise Cancelled(detail, hint="Try again when the service is less busy, or ask for less at a time.")
    return found
