"""Whose turn it is: one thread that steps through all orders of a model.

Each step feeds one token to every running answer and reads at most one chunk of one prompt, so a long prompt delays
nobody by more than a chunk. Higher classes first, then first come, first served; what does not fit waits. Knows orders
and answers; what they hold meanwhile (pages, sessions) and how it is fed, subclasses know.
"""

from __future__ import annotations

import contextvars
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Sequence
from itertools import count
from typing import Generic

import torch
from torch import Tensor

from services.llm_longctx.engine.answer import Answer, S, Waiting
from services.llm_longctx.engine.order import Order
from shared import telemetry
from shared.errors import Cancelled, Fault, FoveaError, NotReady, QueueFull

__all__ = ["Turns", "fault"]


class Turns(ABC, Generic[S]):
    """Serves orders, each on something of its own that is closed with it."""

    def __init__(self, vocab: int, *, max_waiting: int = 64, threads: int = 0) -> None:
        """Prepare; `start` begins to step.

        Args:
            vocab: Size of the vocabulary.
            max_waiting: Orders that may wait.
            threads: Intra-op threads of torch on this thread; 0 leaves the library's default.
        """
        self._vocab = vocab
        self._most_waiting = max_waiting
        self._threads = threads
        self._waiting: list[Waiting[S]] = []
        self._reading: Waiting[S] | None = None
        self._running: list[Answer[S]] = []
        self._later: deque[Generator[None, None, None]] = deque()
        self._numbers = count()
        self._news = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def submit(self, order: Order) -> None:
        """Accept an order; its sinks are called from now on.

        Raises:
            QueueFull: As many orders wait as may.
            NotReady: The scheduler is closed.
        """
        context = contextvars.copy_context()
        with self._news:
            if self._closed:
                detail = "The model was taken out of service."
                raise NotReady(detail)
            if len(self._waiting) >= self._most_waiting:
                detail = f"{len(self._waiting)} requests wait for this model, and no more may."
                raise QueueFull(detail, hint="Try again shortly.", retry_after=1)
            number = next(self._numbers)
            answers = [Answer[S](order, context, choice, number, self._vocab) for choice in order.choices]
            self._queue(Waiting(order, context, time.perf_counter(), answers))
            self._news.notify()

    def later(self, work: Generator[None, None, None]) -> None:
        """Do something on this thread piece by piece while nobody waits, for example compare an answer with dense.

        Under pressure it is given up: then it is closed, and hears of it.

        Raises:
            NotReady: The scheduler is closed.
        """
        with self._news:
            if self._closed:
                detail = "The model was taken out of service."
                raise NotReady(detail)
            self._later.append(work)
            self._news.notify()

    def close(self) -> None:
        """Stop; what is still in flight ends as cancelled."""
        with self._news:
            self._closed = True
            self._news.notify()
        if self._thread.is_alive():
            self._thread.join()
        self._fail(Cancelled("The model was taken out of service."))
        self._give_up()

    @property
    def in_flight(self) -> int:
        """Orders and answers that are not over."""
        return len(self._waiting) + (self._reading is not None) + len(self._running)

    @torch.inference_mode()
    def step(self) -> None:
        """Drop what was cancelled, decode one token everywhere, read one chunk of one prompt."""
        self._drop()
        if self._running:
            self._decode()
        if self._reading is None:
            self._admit()
        if self._reading is not None:
            self._read(self._reading)
        elif not self.in_flight and self._later:
            self._spend(self._later[0])

    # What subclasses know.

    @abstractmethod
    def _decode(self) -> None:
        """Feed one token to every running answer, and `_advance` them."""

    @abstractmethod
    def _open(self, begun: Waiting[S]) -> None:
        """Give an order that was admitted what it is read with."""

    @abstractmethod
    def _fits(self, begun: Waiting[S]) -> bool:
        """Whether there is a place for an order."""

    @abstractmethod
    def _read(self, begun: Waiting[S]) -> None:
        """Read on in the prompt in hand; behind its end its answers begin."""

    @abstractmethod
    def _account(self, answer: Answer[S]) -> None:
        """An answer is about to end: what it cost."""

    def _ended(self, answer: Answer[S]) -> None:
        """An answer has ended well."""

    # One step, in order.

    def _drop(self) -> None:
        with self._news:
            waiting = list(self._waiting)
        gone = [w for w in waiting if _over(w)]
        if gone:
            with self._news:
                self._waiting = [w for w in self._waiting if w not in gone]
        if self._reading is not None and _over(self._reading):
            self._reading = None
        self._running = [a for a in self._running if not _over(a)]

    def _admit(self) -> None:
        with self._news:
            begun = min(self._waiting, key=lambda w: w.rank, default=None)
            if begun is None or not self._fits(begun):
                return
            self._waiting.remove(begun)
            self._tell_places()
        self._reading = begun
        begun.order.run.progress(0.0, "being read")
        begun.context.run(telemetry.observe_stage, "queue", time.perf_counter() - begun.since)
        begun.since = time.perf_counter()
        self._open(begun)

    def _advance(self, answers: list[Answer[S]], logits: Tensor | Sequence[Tensor]) -> None:
        over = [a for a, row in zip(answers, logits, strict=True) if self._advanced(a, row)]
        for answer in over:
            answer.context.run(telemetry.observe_stage, "run", time.perf_counter() - answer.since)
        self._running = [a for a in self._running if a not in over]

    def _advanced(self, answer: Answer[S], logits: Tensor) -> bool:
        """Whether an answer is over now; one that fails, fails alone."""
        try:
            reason = answer.advance(logits)
            if reason is not None:
                self._account(answer)
        except Exception as error:  # noqa: BLE001  # whatever it is, its neighbours go on
            return answer.end(fault(error))
        if reason is not None:
            answer.end(reason)
            self._ended(answer)
        return reason is not None

    def _spend(self, work: Generator[None, None, None]) -> None:
        """One piece of what can wait."""
        try:
            next(work)
        except StopIteration:
            self._later.popleft()
        except Exception as error:  # noqa: BLE001  # nobody asked for it: the log hears of it
            telemetry.log().warning("work in the background failed", exc_info=error)
            self._later.popleft()

    def _give_up(self) -> None:
        while self._later:
            self._later.popleft().close()

    def _queue(self, one: Waiting[S]) -> None:
        """Line up; the lock is held."""
        self._waiting.append(one)
        self._tell_places()

    def _tell_places(self) -> None:
        """Tell those who wait where they stand; the lock is held."""
        for place, one in enumerate(sorted(self._waiting, key=lambda w: w.rank), 1):
            one.order.run.progress(0.0, f"{place} in the queue")

    # The thread.

    def _serve(self) -> None:
        if self._threads:
            torch.set_num_threads(self._threads)
        while True:
            with self._news:
                self._news.wait_for(lambda: self._closed or self.in_flight or self._later)
                if self._closed:
                    return
            try:
                self.step()
            except Exception as error:  # noqa: BLE001  # whatever a step hits, the next order must be served
                self._fail(fault(error))

    def _fail(self, error: FoveaError) -> None:
        with self._news:
            waiting, self._waiting = self._waiting, []
        reading, self._reading = self._reading, None
        running, self._running = self._running, []
        for one in (*waiting, *([reading] if reading else ()), *running):
            one.end(error)


def fault(error: Exception) -> FoveaError:
    """What a caller may know of a failure of ours; the rest goes to the log."""
    if isinstance(error, FoveaError):
        return error
    telemetry.log().error("engine failed", exc_info=error)
    detail = "The model failed on this request."
    return Fault(detail, hint="The log of the service says why.")


def _over(one: Waiting[S] | Answer[S]) -> bool:
    """Whether it was cancelled or is too late; then its sink has been told."""
    try:
        one.order.check()
    except FoveaError as error:
        one.end(error)
        return True
    return False
