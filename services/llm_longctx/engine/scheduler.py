"""Continuous-batching scheduler: one thread that steps through all sequences of a model.

Each step feeds one token to every running sequence and reads about one chunk of one prompt, so a long prompt delays
nobody by more than a chunk. Higher priority first, then first come, first served; what does not fit waits, and where
memory runs out the last admitted lose theirs. Knows sequences; what they hold and how they are run, a backend knows.
"""

import contextvars
import threading
from collections.abc import Generator, Iterable
from itertools import count
from typing import Generic

import torch
from torch import Tensor

from fovea.errors import Cancelled, FoveaError
from services.llm_longctx.engine.backend import SequenceBackend
from services.llm_longctx.engine.device.step_draws import Choice, DrawnRow, read_choices
from services.llm_longctx.engine.quality import observations
from services.llm_longctx.engine.requests.prompt_scores import report_scores
from services.llm_longctx.engine.requests.request import FinishReason, GenerationRequest, to_safe_error, too_large
from services.llm_longctx.engine.requests.waiting_queue import WaitingQueue
from services.llm_longctx.engine.sequence import S, Sequence
from services.llm_longctx.kv_cache import PoolExhausted

_NO_ROOM = (PoolExhausted, torch.OutOfMemoryError)
"""Pages ran out, or a GPU's memory besides them."""


class Scheduler(Generic[S]):
    """Serves requests on one backend, once it was started.

    Attributes:
        backend: Runs the sequences.
        waiting: Sequences that were not admitted yet, the next one first; `max_waiting` of them at most.
        prefilling: The sequence whose prompt is being read.
        running: Sequences that are decoded, in order of admission.
        prefill_tokens: Prompt tokens read per step; the chunk in which they run out is read to its end.
    """

    def __init__(
        self, backend: SequenceBackend[S], *, max_waiting: int = 64, prefill_tokens: int = 512, threads: int = 0
    ) -> None:
        self.backend = backend
        self.waiting = WaitingQueue[S](max_waiting)
        self.prefilling: Sequence[S] | None = None
        self.running: list[Sequence[S]] = []
        self.prefill_tokens = prefill_tokens
        self._most_running: int | None = None  # until one ends, where one more ran out of room in a step
        self._arrivals = count()
        self._threads = threads  # intra-op threads of torch on the scheduler's; 0 leaves the library's default
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)

    # On the threads of requests.

    def add_request(self, request: GenerationRequest) -> None:
        """Line up a request; its hooks are called from now on.

        Raises QueueFull: as many sequences wait as may; NotReady: the scheduler is closed.
        """
        arrival, vocab, context = next(self._arrivals), self.backend.vocab, contextvars.copy_context()
        answers = range(len(request.samplings))
        first, *siblings = (Sequence[S](request, answer, arrival, vocab, context) for answer in answers)
        first.siblings = siblings
        self.waiting.add(first)

    def abort(self, request: GenerationRequest) -> None:
        """End a request that nobody reads any more with the next step."""
        request.is_dropped = True

    def run_when_idle(self, work: Generator[None, None, None]) -> None:
        """Work on the scheduler's thread, piece by piece while nobody waits; closed where a sequence needs its memory.

        Raises NotReady: the scheduler is closed.
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
        for sequence in self._in_flight():
            try:
                sequence.request.check()
            except FoveaError as error:
                self._end(sequence, error)
        self._preempt_for_room()
        if self.running:
            self._decode(list(self.running))
        if self.prefilling is None:
            self._admit()
        if self.prefilling is not None:
            self._prefill(self.prefilling)
        elif not self.in_flight:
            self.backend.background_tasks.run_one()

    def end_all(self, error: FoveaError) -> None:
        """End everything that is in flight."""
        for sequence in self._in_flight():
            self._end(sequence, error)

    def _in_flight(self) -> list[Sequence[S]]:
        return [*self.waiting, *([self.prefilling] if self.prefilling else ()), *self.running]

    def _preempt_for_room(self) -> None:
        """Take memory until all that run can go on: of the prompt in hand, then of the last in rank that may lose it.

        Of the answers to one request the last admitted is the last, so that the others come to their end.
        """
        while self.running and not self.backend.can_append(self.running):
            if self.prefilling is not None:
                self._requeue_prefill(self.prefilling)
            elif len(self.running) > 1:
                may_lose = [s for s in self.running if self.backend.is_preemptible(s)]
                self._requeue_preempted(max(reversed(may_lose or self.running), key=lambda s: s.rank))
            else:
                self._end(self.running[0], too_large())

    def _decode(self, batch: list[Sequence[S]]) -> None:
        observations.observe_decode_step(batch)
        try:
            logits = self.backend.decode_batch(batch)
        except _NO_ROOM:
            if self._most_running == 0 and len(batch) == 1:  # alone, and not for the first time
                self._end(batch[0], too_large())
                return
            for sequence in batch:
                self._requeue_preempted(sequence)
            # As many would come to the same step again, and lose all again: from now on one less.
            self._most_running = len(batch) - 1
            self.backend.reclaim()
        else:
            self._append_tokens(batch, logits)

    def _admit(self) -> None:
        """Take the first that waits in hand, if it fits."""
        if self.running and self._most_running is not None and len(self.running) >= self._most_running:
            return
        sequence = self.waiting.pop_if(lambda s: self.backend.fits(s, self.running))
        if sequence is not None:
            self.prefilling = sequence
            sequence.request.run.progress(0.0, "being read")
            observations.observe_queue(sequence)

    def _prefill(self, sequence: Sequence[S]) -> None:
        """Read on in a prompt; one that fails does not fail the others."""
        left = self.prefill_tokens
        try:
            if not sequence.is_allocated:
                self.backend.allocate(sequence)
            while left > 0:
                begin = sequence.num_computed
                logits = self.backend.prefill_chunk(sequence, self.prefill_tokens)
                report_scores(sequence.request, logits, begin, sequence.num_computed)
                left -= sequence.num_computed - begin
                if sequence.is_prefilled:
                    break
        except _NO_ROOM:
            self._requeue_prefill(sequence)
        except Exception as error:  # noqa: BLE001  # whatever it is, it ends alone
            self._end(sequence, error)
        else:
            if sequence.is_prefilled:
                self._begin_decoding(sequence, logits[-1])

    def _begin_decoding(self, sequence: Sequence[S], logits: Tensor) -> None:
        """The prompt is read: its answers run, each with an allocation of its own."""
        observations.observe_prefill(sequence)
        siblings, sequence.siblings, self.prefilling = sequence.siblings, [], None
        begun = [sequence]
        for sibling in siblings:
            try:
                self.backend.allocate(sibling, parent=sequence)
                begun.append(sibling)
            except _NO_ROOM:
                self._requeue_preempted(sibling)
        self.running += begun
        self._append_tokens(begun, [logits] * len(begun))

    def _append_tokens(self, batch: list[Sequence[S]], rows: Iterable[Tensor | DrawnRow | Exception]) -> None:
        """Draw a token for each from its logits [V], all read at once. An error ends its own sequence alone."""
        found: list[Choice | FinishReason | Exception | None] = []
        for sequence, row in zip(batch, rows, strict=True):
            try:
                found.append(row if isinstance(row, Exception) else sequence.choose_token(row))
            except Exception as error:  # noqa: BLE001  # as above
                found.append(error)
        read = iter(read_choices([one for one in found if isinstance(one, Choice)]))
        for sequence, one in zip(batch, found, strict=True):
            try:
                reason = sequence.append_token(next(read)) if isinstance(one, Choice) else one
                if len(sequence.output_ids) == 1 and not sequence.first_token_at:
                    observations.observe_first_token(sequence)
                if isinstance(reason, str):
                    self.backend.complete(sequence, self.running)
            except Exception as error:  # noqa: BLE001  # as above
                reason = error
            if reason is not None:
                self._end(sequence, reason)
                observations.observe_decode(sequence)

    # Ends, and ways back into the queue.

    def _end(self, sequence: Sequence[S], reason: FinishReason | Exception) -> None:
        """Take a sequence and its siblings out, wherever they are, and report why they are over."""
        if sequence is self.prefilling:
            self.prefilling = None
        elif sequence in self.running:
            self.running.remove(sequence)
            self._most_running = None
        else:
            self.waiting.discard(sequence)
        told = to_safe_error(reason) if isinstance(reason, Exception) else reason
        for one in (sequence, *sequence.siblings):
            self.backend.release(one)
        for one in (sequence, *sequence.siblings):
            one.request.hooks.on_finish(one.answer, told, len(one.output_ids))

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
        self.waiting.put_back(sequence)

    def _requeue_preempted(self, sequence: Sequence[S]) -> None:
        """A sequence that lost its memory waits, by its arrival in front of its class."""
        observations.observe_preemption(sequence)
        if sequence in self.running:
            self.running.remove(sequence)
        self.backend.release(sequence)
        sequence.rewind()
        self.waiting.put_back(sequence)

    def _serve(self) -> None:
        if self._threads:
            torch.set_num_threads(self._threads)
        while self.waiting.wait_for(lambda: self.in_flight or self.backend.background_tasks):
            try:
                self.step()
            except Exception as error:  # noqa: BLE001  # whatever a step hits, the next request must be served
                self.end_all(to_safe_error(error))
