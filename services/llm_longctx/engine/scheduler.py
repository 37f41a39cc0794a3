"""The scheduler: one thread that steps through all orders, batching their decoding, and reads prompts in between.

Each step feeds one token to every running answer and reads at most one chunk of one prompt, so a long prompt delays
nobody by more than a chunk. Higher classes first, then first come, first served; what does not fit waits; when pages
run out, the answer that began last loses its own and is read again. Knows nothing about text or HTTP.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections import deque
from collections.abc import Generator, Sequence
from itertools import count
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from services.llm_longctx.engine.answer import Answer, Waiting
from services.llm_longctx.engine.decoding import decode, held_bytes
from services.llm_longctx.engine.open_sequence import OpenSequence
from services.llm_longctx.engine.order import Order
from services.llm_longctx.engine.pacing import next_chunk
from services.llm_longctx.engine.prefixes import Prefixes
from services.llm_longctx.engine.sampler import scored
from services.llm_longctx.engine.watch import Watch
from services.llm_longctx.kv import PoolExhausted
from shared import telemetry
from shared.errors import Cancelled, Fault, FoveaError, NotReady, QueueFull, TooLarge

if TYPE_CHECKING:
    from services.llm_longctx.engine.engine import Engine

__all__ = ["Scheduler"]

_MOST_LATER = 8
"""Comparisons that may wait for a quiet moment; under steady load the watch sees fewer answers."""

_TOO_LARGE = "The request needs more memory for keys and values than this model has."


class Scheduler:
    """Serves orders on one engine."""

    def __init__(
        self,
        engine: Engine,
        *,
        max_waiting: int = 64,
        prefill_tokens: int = 512,
        threads: int = 0,
        watch: Watch | None = None,
    ) -> None:
        """Take an engine into service; `start` begins to step.

        Args:
            engine: The engine.
            max_waiting: Orders that may wait.
            prefill_tokens: Prompt tokens read per step.
            threads: Intra-op threads of torch on the scheduler's thread; 0 leaves the library's default.
            watch: Looks at a share of the answers; None looks at none.
        """
        self.engine = engine
        self.prefixes = Prefixes(engine)
        self.watch = watch
        self._limits = (max_waiting, prefill_tokens)
        self._threads = threads
        self._waiting: list[Waiting] = []
        self._reading: Waiting | None = None
        self._running: list[Answer] = []
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
        context, policy = contextvars.copy_context(), order.policy or self.engine.policy
        with self._news:
            if self._closed:
                detail = "The model was taken out of service."
                raise NotReady(detail)
            if len(self._waiting) >= self._limits[0]:
                detail = f"{len(self._waiting)} requests wait for this model, and no more may."
                raise QueueFull(detail, hint="Try again shortly.", retry_after=1)
            number, vocab = next(self._numbers), self.engine.model.config.vocab
            answers = [Answer(order, policy, context, choice, number, vocab) for choice in order.choices]
            self._queue(Waiting(order, policy, context, time.perf_counter(), answers))
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
        self.prefixes.clear()

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

    def _decode(self) -> None:
        while self._running and not self._room(sum(s.memory.fresh() for s in self._sequences())):
            self._preempt()
        if not self._running:
            return
        engine, sequences = self.engine, self._sequences()
        try:
            logits = decode(engine.model, sequences, [a.fed for a in self._running], engine.backend)
        except PoolExhausted:
            # Addresses ran out in the middle of a step: its sequences are of no use any more.
            for answer in self._running:
                self._again(answer)
            self._running = []
            return
        self._advance(self._running, logits.float().cpu())

    def _admit(self) -> None:
        with self._news:
            begun = min(self._waiting, key=lambda w: w.rank, default=None)
            if begun is None or not self._fits(begun):
                return
            self._waiting.remove(begun)
            self._tell_places()
        self._reading = begun
        begun.context.run(telemetry.observe_stage, "queue", time.perf_counter() - begun.since)
        begun.since = time.perf_counter()
        engine, order = self.engine, begun.order
        begun.sequence = engine.adopt(OpenSequence(engine.model, engine.pool, begun.policy, engine.backend))
        begun.sequence.prompt = len(order.ids)
        self.prefixes.begin(begun.sequence, order)
        try:
            begun.sequence.reserve(len(order.ids), min(order.max_tokens, 1024))
        except PoolExhausted:
            self._put_back(begun)

    def _fits(self, begun: Waiting) -> bool:
        """Whether there is a place, and pages for what it will hold and for what its prefill holds meanwhile."""
        engine, order = self.engine, begun.order
        if len(self._running) + len(begun.answers) > engine.max_batch and self._running:
            return False
        new = min(order.max_tokens, 256)
        wanted = engine.pages(begun.policy, len(order.ids), new)
        if begun.policy.method.chunk_invariant:
            # Heads that are cut only at the prompt's end hold all of it until then.
            wanted = max(wanted, engine.pages(engine.dense, len(order.ids), 0))
        wanted += (len(begun.answers) - 1) * engine.pages(begun.policy, 0, new)
        return self._room(wanted) or not self._running

    def _read(self, begun: Waiting) -> None:
        order, s, left = begun.order, begun.sequence, self._limits[1]
        assert s is not None  # noqa: S101  # set on admission
        while left > 0 and self._reading is begun:
            begin = s.memory.length
            size = next_chunk(begun.policy.method, begin, len(order.ids), self.engine.pool.page)
            if begun.policy.method.chunk_invariant and begun.policy.method.supports.chunked_prefill:
                size = min(size, self._limits[1])
            left -= size
            try:
                if not self._room(s.memory.fresh(size)):
                    self._put_back(begun)
                    return
                logits = self._chunk(begun, s, order.ids[begin : begin + size])
            except PoolExhausted:
                self._put_back(begun)
            except Exception as error:  # noqa: BLE001  # an order that can't be read is no reason to fail the others
                self._reading = None
                begun.end(_fault(error))
            else:
                self.prefixes.add(s, order)
                if s.memory.length == len(order.ids):
                    self._reading = None
                    self._begin(begun, s, logits[-1])

    def _chunk(self, begun: Waiting, s: OpenSequence, chunk: Sequence[int]) -> Tensor:
        order, begin = begun.order, s.memory.length
        end = begin + len(chunk)
        first = max(begin + 1, order.score_from, begun.told)
        scoring = order.score_prompt and first <= end
        last = end == len(order.ids)
        keep = None if scoring else int(last)
        logits = s.read(chunk, last=last, keep=keep, boundaries=order.boundaries).float().cpu()
        if scoring and (known := list(order.ids[first : end + 1])):
            tokens = scored(logits[first - 1 - begin :][: len(known)], known, order.top or 0)
            begun.told = first + len(known)
            for answer in begun.answers:
                answer.prompt(tokens)
        return logits

    def _begin(self, begun: Waiting, s: OpenSequence, logits: Tensor) -> None:
        """The prompt is read: its answers begin, each with pages of its own."""
        now = time.perf_counter()
        begun.context.run(telemetry.observe_stage, "pre", now - begun.since)
        facts = begun.order.facts
        facts.cached_tokens = s.cached
        if s.densities:
            facts.prefill_density = sum(s.densities) / len(s.densities)
        begun.answers[0].sequence = s
        for answer in begun.answers[1:]:
            try:
                answer.sequence = self.engine.adopt(s.fork())
            except PoolExhausted:
                self._again(answer)
        ready = [answer for answer in begun.answers if answer.sequence is not None]
        for answer in ready:
            answer.since = now
        self._running += ready
        self._advance(ready, logits.expand(len(ready), -1))

    def _advance(self, answers: list[Answer], logits: Tensor) -> None:
        over = [a for a, row in zip(answers, logits, strict=True) if self._advanced(a, row)]
        for answer in over:
            answer.context.run(telemetry.observe_stage, "run", time.perf_counter() - answer.since)
        self._running = [a for a in self._running if a not in over]

    def _advanced(self, answer: Answer, logits: Tensor) -> bool:
        """Whether an answer is over now; one that fails, fails alone."""
        try:
            reason = answer.advance(logits)
        except Exception as error:  # noqa: BLE001  # whatever it is, its neighbours go on
            return answer.end(_fault(error))
        if reason is not None:
            self._account(answer)
            answer.end(reason)
            if self.watch is not None and len(self._later) < _MOST_LATER:
                work = self.watch.work(self.engine, answer)
                self._later += () if work is None else (work,)
        return reason is not None

    def _account(self, answer: Answer) -> None:
        """What an order holds as one of its answers ends."""
        facts, order = answer.order.facts, answer.order
        mine = [a.sequence for a in self._running if a.order is order and a.sequence is not None]
        facts.kv_bytes = max(facts.kv_bytes, held_bytes(mine))
        # The last token drawn was never fed, so nothing of it is held.
        tokens = len(order.ids) + max(len(answer.produced) - 1, 0)
        facts.kv_bytes_dense = max(facts.kv_bytes_dense, self.engine.dense_bytes(tokens))
        facts.full_steps = max(facts.full_steps, max((s.full_steps for s in mine), default=0))

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

    # Pages.

    def _sequences(self) -> list[OpenSequence]:
        return [a.sequence for a in self._running if a.sequence is not None]

    def _room(self, pages: int) -> bool:
        """Whether so many pages are free, cached prefixes given up if need be."""
        if self.engine.pool.free < pages:
            self._give_up()
        return self.engine.pool.free >= pages or self.prefixes.make_room(pages)

    def _preempt(self) -> None:
        """Take the pages of whoever began last: an order that is being read, else the youngest answer that may lose."""
        if self._reading is not None:
            self._put_back(self._reading)
            return
        may = [a for a in self._running if a.policy.method.supports.preemption == "recompute"] or self._running
        victim = max(may, key=lambda a: a.number)
        self._running.remove(victim)
        if self._running:
            self._again(victim)
        else:
            victim.end(TooLarge(_TOO_LARGE))

    def _put_back(self, begun: Waiting) -> None:
        self._reading = None
        begun.lose()
        if not self._running:
            begun.end(TooLarge(_TOO_LARGE))
            return
        with self._news:
            self._queue(begun)

    def _again(self, answer: Answer) -> None:
        """An answer that lost its pages waits, by its arrival in front of its class."""
        answer.lose()
        told = len(answer.order.ids)
        with self._news:
            self._queue(Waiting(answer.order, answer.policy, answer.context, time.perf_counter(), [answer], told))

    def _queue(self, one: Waiting) -> None:
        """Line up; the lock is held."""
        self._waiting.append(one)
        self._tell_places()

    def _tell_places(self) -> None:
        """Tell jobs where they stand; the lock is held."""
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
                self._fail(_fault(error))

    def _fail(self, error: FoveaError) -> None:
        with self._news:
            waiting, self._waiting = self._waiting, []
        reading, self._reading = self._reading, None
        running, self._running = self._running, []
        for one in (*waiting, *([reading] if reading else ()), *running):
            one.end(error)


def _fault(error: Exception) -> FoveaError:
    """What a caller may know of a failure of ours; the rest goes to the log."""
    if isinstance(error, FoveaError):
        return error
    telemetry.log().error("engine failed", exc_info=error)
    detail = "The model failed on this request."
    return Fault(detail, hint="The log of the service says why.")


def _over(one: Waiting | Answer) -> bool:
    """Whether it was cancelled or is too late; then its sink has been told."""
    try:
        one.order.check()
    except FoveaError as error:
        one.end(error)
        return True
    return False
