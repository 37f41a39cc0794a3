"""RULER-form evaluation of a served model: on its scheduler's thread, in pieces, while no request waits."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Generator

from services.llm_longctx.evaluation.ruler.answering import Answer
from services.llm_longctx.evaluation.ruler.report import RulerReport
from services.llm_longctx.evaluation.ruler.run import Evaluated, RulerSpec, run_ruler
from services.llm_longctx.serving.adapters.decoder import DecoderAdapter
from shared.errors import Cancelled
from shared.registry import CallContext

__all__ = ["run_served"]

POLL_S = 0.005
"""Seconds between two checks whether a block is answered."""


def run_served(adapter: DecoderAdapter, spec: RulerSpec, run: CallContext) -> RulerReport:
    """Evaluate methods behind all other requests.

    Raises:
        InvalidOption: A task or method is unknown, or a length is too short or too long.
        Cancelled: The caller went away, or requests needed the memory.
    """

    def do(work: Generator[None, None, list[Answer]]) -> list[Answer]:
        return _run_when_idle(adapter, work, run)

    on = Evaluated(adapter.engine, adapter.tokenizer, adapter.plans, adapter.name, do)
    report = run_ruler(on, spec, progress=run.progress, check=run.check)
    run.progress(1.0, "all samples answered")
    return report


def _run_when_idle(
    adapter: DecoderAdapter, work: Generator[None, None, list[Answer]], run: CallContext
) -> list[Answer]:
    results: queue.SimpleQueue[list[Answer] | BaseException | None] = queue.SimpleQueue()
    is_abandoned = threading.Event()

    def piecewise() -> Generator[None, None, None]:
        try:
            yield  # started before it is handed over: only a started generator runs `finally` when it is closed
            while not is_abandoned.is_set():
                try:
                    next(work)
                except StopIteration as end:
                    results.put(end.value)
                    return
                except Exception as error:  # noqa: BLE001  # told to who waits
                    results.put(error)
                    return
                yield
        finally:
            work.close()
            results.put(None)

    next(begun := piecewise())
    adapter.scheduler.run_when_idle(begun)
    try:
        while results.empty():
            run.check()
            time.sleep(POLL_S)
    finally:
        is_abandoned.set()
    found = results.get()
    if isinstance(found, BaseException):
        raise found
    if found is None:
        detail = "The evaluation was given up: requests needed its memory."
        raise Cancelled(detail, hint="Try again when the service is less busy, or ask for fewer samples.")
    return found
