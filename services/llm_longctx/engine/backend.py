"""Backend: what a scheduler needs from whatever runs its sequences, and the one that runs a decoder over pages.

Admission counts the pages that a sequence will hold under its method. Knows nothing about whose turn it is.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from typing import Generic

from torch import Tensor

from services.llm_longctx.engine.attention.method_policy import Policy
from services.llm_longctx.engine.device.step_draws import DrawnRow, StepDraws
from services.llm_longctx.engine.drafting.drafter import Drafter
from services.llm_longctx.engine.kv_manager import PagedState
from services.llm_longctx.engine.model_runner import ModelRunner
from services.llm_longctx.engine.prefix_cache import PrefixCache
from services.llm_longctx.engine.quality.background_tasks import BackgroundTasks
from services.llm_longctx.engine.quality.fidelity_monitor import FidelityMonitor
from services.llm_longctx.engine.requests.prompt_scores import count_logits
from services.llm_longctx.engine.sequence import S, Sequence
from services.llm_longctx.engine.taps import SequenceTaps
from services.llm_longctx.kv_cache import PoolExhausted, count_bytes

_FORESEEN_NEW = 256
"""Tokens of an answer that admission counts on; what comes beyond may preempt."""

_RESERVED_NEW = 1024
"""Tokens of an answer for which addresses are reserved."""


class SequenceBackend(ABC, Generic[S]):
    """Allocates, prefills and decodes sequences. Called on the scheduler's thread.

    Attributes:
        vocab: Size of the vocabulary.
        background_tasks: Given up where a sequence needs its memory.
    """

    vocab: int
    background_tasks: BackgroundTasks

    @abstractmethod
    def fits(self, sequence: Sequence[S], running: Collection[Sequence[S]]) -> bool:
        """Whether a sequence and its siblings can be admitted next to those that run."""

    @abstractmethod
    def allocate(self, sequence: Sequence[S], parent: Sequence[S] | None = None) -> None:
        """Give a sequence what it is prefilled with: nothing read yet, a cached prefix, or all that its parent read.

        Raises PoolExhausted: there is no room; FoveaError: it can't be served.
        """

    @abstractmethod
    def prefill_chunk(self, sequence: Sequence[S], limit: int) -> Tensor:
        """Read the next chunk of its prompt, about `limit` tokens: the logits that `count_logits` asks for [t,V].

        Raises PoolExhausted: there is no room; the sequence is of no use until it is allocated anew.
        """

    def can_append(self, running: Collection[Sequence[S]]) -> bool:
        """Whether each of them has room for one more token."""
        return True

    @abstractmethod
    def decode_batch(self, batch: list[Sequence[S]]) -> Iterable[Tensor | DrawnRow | Exception]:
        """Feed each its next token: the logits [V] of each, on a device with a token, or why it alone can't go on.

        Raises PoolExhausted: room ran out on the way; none of them is of use any more.
        """

    @abstractmethod
    def is_preemptible(self, sequence: Sequence[S]) -> bool:
        """Whether it may lose what it holds and be read again."""

    @abstractmethod
    def complete(self, sequence: Sequence[S], running: Collection[Sequence[S]]) -> None:
        """An answer is about to end well: record what it cost, and hand on what it holds where somebody wants it."""

    def release(self, sequence: Sequence[S]) -> None:
        """Take back what a sequence holds, if anything."""
        sequence.free()

    def reclaim(self) -> None:
        """Give up what only saves time: cached prefixes."""


class PagedBackend(SequenceBackend[PagedState]):
    """Runs sequences on pages, each under its own method.

    Attributes:
        runner, policy, max_batch, monitor, prefix_cache: As in `Engine`.
    """

    def __init__(
        self,
        runner: ModelRunner,
        policy: Policy,
        max_batch: int = 8,
        monitor: FidelityMonitor | None = None,
        prefix_block: int = 64,
    ) -> None:
        self.runner, self.policy, self.max_batch, self.monitor = runner, policy, max_batch, monitor
        self.prefix_cache = PrefixCache(runner, prefix_block)
        self.background_tasks = BackgroundTasks()
        self.vocab = runner.model.config.vocab
        self._drafter = Drafter(runner)

    def fits(self, sequence: Sequence[PagedState], running: Collection[Sequence[PagedState]]) -> bool:
        if running and len(running) + 1 + len(sequence.siblings) > self.max_batch:
            return False
        return self._make_room(self._foresee_pages(sequence)) or not running

    def allocate(self, sequence: Sequence[PagedState], parent: Sequence[PagedState] | None = None) -> None:
        request = sequence.request
        if parent is not None:
            sequence.state, sequence.taps = parent.state.fork(), parent.taps and parent.taps.fork()
            return
        if request.taps is not None and sequence.taps is None:
            sequence.taps = SequenceTaps(request.taps, self.runner.model)
        sequence.state = state = self.runner.open(request.policy or self.policy, request.adapter)
        sequence.num_computed = self.prefix_cache.attach(state, request)
        if not request.stats.preempted:  # what is read again was not in the cache when the prompt was read
            request.stats.cached_tokens = sequence.num_computed
        state.reserve(len(request.prompt_ids), min(request.max_tokens, _RESERVED_NEW))

    def next_size(self, sequence: Sequence[PagedState], limit: int) -> int:
        """Tokens of a prompt's next chunk, on the method's grid."""
        return sequence.state.policy.next_chunk(sequence.num_computed, len(sequence.request.prompt_ids), limit)

    def prefill_chunk(self, sequence: Sequence[PagedState], limit: int) -> Tensor:
        request, state, begin = sequence.request, sequence.state, sequence.num_computed
        size = self.next_size(sequence, limit)
        if not self._make_room(state.cache.pages_needed(size)):
            raise PoolExhausted(f"a chunk of {size} tokens does not fit")
        end = begin + size
        logits = self.runner.prefill(
            state, request.prompt_ids[begin:end], last=end == len(request.prompt_ids),
            keep=count_logits(request, begin, end), boundaries=request.boundaries, taps=sequence.taps,
        )  # fmt: skip
        sequence.num_computed = end
        if not sequence.is_last_try:
            self.prefix_cache.add(state, request)
        request.stats.prefill_density = state.prefill_density
        return logits.float()

    def can_append(self, running: Collection[Sequence[PagedState]]) -> bool:
        return self._make_room(sum(s.state.cache.pages_needed() for s in running))

    def decode_batch(self, batch: list[Sequence[PagedState]]) -> list[Tensor] | list[DrawnRow]:
        if self.runner.pool.device.type == "cpu":
            return self._drafter.decode(batch)
        # Next to the logits tokens are drawn, too; drafts don't pay there.
        draws = StepDraws([s.draw_settings() for s in batch], self.runner.backend)
        taps = [s.taps for s in batch]
        self.runner.decode([s.state for s in batch], [s.next_token for s in batch], taps, draws)
        return [draws.row(b) for b in range(len(batch))]

    def is_preemptible(self, sequence: Sequence[PagedState]) -> bool:
        return sequence.state.policy.method.supports.preemption == "recompute"

    def complete(self, sequence: Sequence[PagedState], running: Collection[Sequence[PagedState]]) -> None:
        request, stats = sequence.request, sequence.request.stats
        self._drafter.end(sequence.state)
        states = [s.state for s in running if s.request is request]
        stats.kv_bytes = max(stats.kv_bytes, count_bytes(s.cache for s in states))
        dense, pool = self.runner.dense, self.runner.pool
        shared = len(request.prompt_ids) // pool.page * int(dense.full.sum()) * pool.page_bytes  # but what slides
        nbytes = sum(dense.nbytes(s.cache.length, 0, pool) for s in states) - (len(states) - 1) * shared
        stats.kv_bytes_dense = max(stats.kv_bytes_dense, nbytes)
        stats.full_steps = max(stats.full_steps, max((s.full_steps for s in states), default=0))
        if self.monitor is not None:
            self.monitor.watch(self.runner, sequence, self.background_tasks)

    def reclaim(self) -> None:
        self.prefix_cache.clear()

    def _foresee_pages(self, sequence: Sequence[PagedState]) -> int:
        """Pages that a sequence and its siblings will hold, or its prefill meanwhile."""
        request, pool = sequence.request, self.runner.pool
        policy = request.policy or self.policy
        prompt, new = len(request.prompt_ids), min(request.max_tokens, _FORESEEN_NEW)
        nbytes = policy.nbytes(prompt, new, pool)
        if policy.method.cut_at_end:
            # Heads that are cut only at the prompt's end hold all of it until then.
            nbytes = max(nbytes, self.runner.dense.with_cache(policy.cache_bits).nbytes(prompt, 0, pool))
        nbytes += len(sequence.siblings) * policy.nbytes(0, new, pool)
        return -(-nbytes // pool.page_bytes)

    def _make_room(self, pages: int) -> bool:
        """Whether so many pages are free, after idle work and cached prefixes were given up if need be."""
        if self.runner.pool.free < pages:
            self.background_tasks.clear()
        return self.runner.pool.free >= pages or self.prefix_cache.make_room(pages)
