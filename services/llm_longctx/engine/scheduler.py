"""Continuous-batching scheduler: one thread that steps through all sequences of a model.

Each step feeds one token to every running sequence and reads about one chunk of one prompt, so a long prompt delays
nobody by more than a chunk. Higher priority first, then first come, first served; what does not fit waits, and where
memory runs out the last admitted lose theirs. Knows sequences; what they hold and how they are run, a backend knows.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable
from itertools import count
from typing import Generic

import torch
from torch import Tensor

from fovea.errors import Cancelled, FoveaError
from services.llm_longctx.engine.backend import SequenceBackend
from services.llm_longctx.engine.device.step_draws import Choice, DrawnRow
from services.llm_longctx.engine.quality import observations
from services.llm_longctx.engine.requests.failures import to_safe_error, too_large
from services.llm_longctx.engine.requests.request import FinishReason, GenerationRequest
from services.llm_longctx.engine.requests.waiting_queue import WaitingQueue
from services.llm_longctx.engine.sampler import read_choices
from services.llm_longctx.engine.sequence import S, Sequence, SequenceStatus
from services.llm_longctx.kv_cache import PoolExhausted


class Scheduler(Generic[S]):
    """Serves requests on one backend.

    Attributes:
        backend: Runs the sequences.
        waiting: Sequences that were not admitted yet, the next one first.
        prefilling: The sequence whose prompt is being read.
        running: Sequences that are decoded, in order of admission.
        prefill_tokens: Prompt tokens read per step; the chunk in which they run out is read to its end.
    """

    def __init__(
        self, backend: SequenceBackend[S], *, max_waiting: int = 64, prefill_tokens: int = 512, threads: int = 0
    ) -> None:
        """Prepare; `start` begins to step.

        Args:
            backend: Runs the sequences.
            max_waiting: Sequences that may wait.
            prefill_tokens: Prompt tokens read per step.
            threads: Intra-op threads of torch on the scheduler's thread; 0 leaves the library's default.
        """
        self.backend = backend
        self.waiting = WaitingQueue[S](max_waiting)
        self.prefilling: Sequence[S] | None = None
        self.running: deque[Sequence[S]] = deque()
        self.prefill_tokens = prefill_tokens
        self._arrivals = count()
        self._threads = threads
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)

    # On the threads of requests.

    def add_request(self, request: GenerationRequest) -> None:
        """Line up a request; its hooks are called from now on.

        Raises:
            QueueFull: As many sequences wait as may.
            NotReady: The scheduler is closed.
        """
        arrival, vocab, context = next(self._arrivals), self.backend.vocab, contextvars.copy_context()
        answers = range(len(request.samplings))
        first, *siblings = (Sequence[S](request, answer, arrival, vocab, context) for answer in answers)
        first.siblings = siblings
        self.waiting.add(first)

    def abort(self, request: GenerationRequest) -> None:
        """End a request that nobody reads any more with the next step."""
        self.waiting.abort(request)

    def run_when_idle(self, work: Generator[None, None, None]) -> None:
        """Do something on the scheduler's thread piece by piece while nobody waits, for example compare with dense.

        Where a sequence needs its memory it is given up: then it is closed.

        Raises:
            NotReady: The scheduler is closed.
        """
        self.waiting.require_open()
        self.backend.background_tasks.add(work)
        self.waiting.wake()

    @property
    def in_flight(self) -> int:
        """Sequences that are not over; siblings that wait for a prefill count with it."""
        return len(self.waiting) + (self.prefilling is not None) + len(self.running)

    def start(self) -> None:
        """Begin to step, on a thread of its own."""
        self._thread.start()

    def close(self) -> None:
        """Stop; what is still in flight ends as cancelled."""
        self.waiting.close()
        if self._thread.is_alive():
            self._thread.join()
        self.end_all(Cancelled("The model was taken out of service."))
        self.backend.background_tasks.clear()
        self.backend.reclaim()

    # On the scheduler's thread: one step, in order.

    @torch.inference_mode()
    def step(self) -> None:
        """Drop what was cancelled, decode one token everywhere, read on in one prompt."""
        self._drop_cancelled()
        if batch := self.schedule_decode():
            self._decode(batch)
        if (sequence := self.schedule_prefill()) is not None:
            self._prefill(sequence)
        elif not self.in_flight:
            self.backend.background_tasks.run_one()

    def schedule_decode(self) -> list[Sequence[S]]:
        """The sequences to decode in this step: all that run, once as many were preempted as must be."""
        while self.running and not self.backend.can_append(self.running):
            self.preempt()
        return list(self.running)

    def schedule_prefill(self) -> Sequence[S] | None:
        """The sequence to read on in: the one in hand, or the first that waits, if it fits."""
        if self.prefilling is None:
            sequence = self.waiting.pop_if(lambda s: self.backend.fits(s, self.running))
            if sequence is not None:
                self._admit(sequence)
        return self.prefilling

    def preempt(self) -> None:
        """Take the memory of the last admitted: of the prompt in hand, or of the youngest sequence that may lose it."""
        if self.prefilling is not None:
            self._requeue_prefill(self.prefilling)
            return
        may_lose = [s for s in self.running if self.backend.is_preemptible(s)]
        victim = max(may_lose or self.running, key=lambda s: s.arrival)
        self.running.remove(victim)
        if self.running:
            self._requeue_preempted(victim)
        else:
            self._end(victim, too_large())

    def end_all(self, error: FoveaError) -> None:
        """End everything that is in flight."""
        for sequence in self._in_flight():
            self._end(sequence, error)
        self._drop_finished()

    def _drop_cancelled(self) -> None:
        aborted = self.waiting.take_aborted()
        for sequence in self._in_flight():
            try:
                if sequence.request in aborted:
                    detail = "The request was dropped."
                    raise Cancelled(detail)  # ends as if its caller had gone away
                sequence.request.run.check()
            except FoveaError as error:
                self._end(sequence, error)
        self._drop_finished()

    def _in_flight(self) -> list[Sequence[S]]:
        return [*self.waiting, *([self.prefilling] if self.prefilling else ()), *self.running]

    def _drop_finished(self) -> None:
        self.waiting.drop_finished()
        self.running = deque(s for s in self.running if s.status is not SequenceStatus.FINISHED)
        if self.prefilling is not None and self.prefilling.status is SequenceStatus.FINISHED:
            self.prefilling = None

    def _decode(self, batch: list[Sequence[S]]) -> None:
        observations.observe_decode_step(batch)
        try:
            logits = self.backend.decode_batch(batch)
        except PoolExhausted:
            self.running.clear()
            for sequence in batch:
                self._requeue_preempted(sequence)
        else:
            self._append_tokens(batch, logits)

    def _admit(self, sequence: Sequence[S]) -> None:
        now = time.perf_counter()
        self.prefilling, sequence.status = sequence, SequenceStatus.PREFILL
        sequence.request.run.progress(0.0, "being read")
        observations.observe_queue(sequence, now)
        sequence.since = now
        try:
            self.backend.allocate(sequence)
        except PoolExhausted:
            self._requeue_prefill(sequence)
        except Exception as error:  # noqa: BLE001  # a sequence that can't begin does not fail the others
            self._fail_prefill(sequence, error)

    def _prefill(self, sequence: Sequence[S]) -> None:
        left = self.prefill_tokens
        while left > 0 and self.prefilling is sequence:
            begin = sequence.num_computed
            try:
                logits = self.backend.prefill_chunk(sequence, self.prefill_tokens)
                sequence.report_prompt(logits, begin)
            except PoolExhausted:
                self._requeue_prefill(sequence)
            except Exception as error:  # noqa: BLE001  # as above
                self._fail_prefill(sequence, error)
            else:
                left -= sequence.num_computed - begin
                if sequence.is_prefilled:
                    self._begin_decoding(sequence, logits[-1])

    def _begin_decoding(self, sequence: Sequence[S], logits: Tensor) -> None:
        """The prompt is read: its answers run, each with an allocation of its own."""
        now = time.perf_counter()
        observations.observe_prefill(sequence, now)
        siblings, sequence.siblings, self.prefilling = sequence.siblings, [], None
        begun = [sequence]
        for sibling in siblings:
            try:
                self.backend.allocate(sibling, parent=sequence)
                begun.append(sibling)
            except PoolExhausted:
                self._requeue_preempted(sibling)
        for one in begun:
            one.status, one.since = SequenceStatus.RUNNING, now
        self.running += begun
        self._append_tokens(begun, [logits] * len(begun))

    def _append_tokens(self, batch: list[Sequence[S]], logits: Iterable[Tensor | DrawnRow | Exception]) -> None:
        """Draw a token for each from its logits [V]; remove finished sequences. One that fails, fails alone."""
        found = [sequence.try_choose(row) for sequence, row in zip(batch, logits, strict=True)]
        read = iter(read_choices([one for one in found if isinstance(one, Choice)]))
        for sequence, one in zip(batch, found, strict=True):
            reason = self._append_token(sequence, next(read) if isinstance(one, Choice) else one)
            if reason is not None:
                self._end(sequence, reason)
        for sequence in batch:
            if sequence.status is SequenceStatus.FINISHED:
                observations.observe_decode(sequence)
        self._drop_finished()

    def _append_token(
        self, sequence: Sequence[S], found: list[float] | FinishReason | FoveaError | None
    ) -> FinishReason | FoveaError | None:
        if isinstance(found, FoveaError):
            return found
        try:
            reason = sequence.append_token(found) if isinstance(found, list) else found
            if len(sequence.output_ids) == 1 and not sequence.first_token_at:
                observations.observe_first_token(sequence)
            if reason is not None:
                self.backend.complete(sequence, self.running)
        except Exception as error:  # noqa: BLE001  # as above
            return to_safe_error(error)
        return reason

    # Ends, and ways back into the queue.

    def _end(self, sequence: Sequence[S], reason: FinishReason | FoveaError) -> None:
        for one in (sequence, *sequence.siblings):
            self.backend.release(one)
        for one in (sequence, *sequence.siblings):
            one.finish(reason)

    def _fail_prefill(self, sequence: Sequence[S], error: Exception) -> None:
        self.prefilling = None
        self._end(sequence, to_safe_error(error))

    def _requeue_prefill(self, sequence: Sequence[S]) -> None:
        """A prompt that did not fit is read anew later; where it was alone, once more and with all memory to itself."""
        self.prefilling = None
        self.backend.release(sequence)
        if not self.running:
            if sequence.is_last_try:
                self._end(sequence, too_large())
                return
            # Pages that cached prefixes share are copied where a run must move: give them up, and leave none behind.
            sequence.is_last_try = True
            self.backend.reclaim()
        sequence.status = SequenceStatus.WAITING
        self.waiting.put_back(sequence)

    def _requeue_preempted(self, sequence: Sequence[S]) -> None:
        """A sequence that lost its memory waits, by its arrival in front of its class."""
        observations.observe_preemption(sequence)
        self.backend.release(sequence)
        sequence.preempt()
        self.waiting.put_back(sequence)

    def _serve(self) -> None:
        if self._threads:
            torch.set_num_threads(self._threads)
        while self.waiting.wait_for(lambda: self.in_flight or self.backend.background_tasks):
            try:
                self.step()
            except Exception as error:  # noqa: BLE001  # whatever a step hits, the next request must be served
                self.end_all(to_safe_error(error))
