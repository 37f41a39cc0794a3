"""The scheduler of the decoder: one decode batch of all running answers a step, on one pool of pages.

What does not fit waits; when pages run out, the answer that began last loses its own and is read again. Whose turn it
is, `turns` knows. Knows nothing about text or HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from services.llm_longctx.engine.answer import Answer, Waiting
from services.llm_longctx.engine.chunking import next_chunk
from services.llm_longctx.engine.decode_attention import decode, held_bytes
from services.llm_longctx.engine.method_policy import Policy
from services.llm_longctx.engine.open_sequence import OpenSequence
from services.llm_longctx.engine.order import Order
from services.llm_longctx.engine.prefix_cache import Prefixes
from services.llm_longctx.engine.quality.fidelity_monitor import FidelityMonitor
from services.llm_longctx.engine.sampler import scored
from services.llm_longctx.engine.turns import Turns, fault
from services.llm_longctx.kv_cache import PoolExhausted
from shared import telemetry
from shared.errors import TooLarge

if TYPE_CHECKING:
    from services.llm_longctx.engine.llm_engine import Engine

__all__ = ["Scheduler"]

_MOST_LATER = 8
"""Comparisons that may wait for a quiet moment; under steady load the watch sees fewer answers."""

_TOO_LARGE = "The request needs more memory for keys and values than this model has."


class Scheduler(Turns[OpenSequence]):
    """Serves orders on one engine."""

    def __init__(
        self,
        engine: Engine,
        *,
        max_waiting: int = 64,
        prefill_tokens: int = 512,
        threads: int = 0,
        watch: FidelityMonitor | None = None,
    ) -> None:
        """Take an engine into service; `start` begins to step.

        Args:
            engine: The engine.
            max_waiting: Orders that may wait.
            prefill_tokens: Prompt tokens read per step.
            threads: Intra-op threads of torch on the scheduler's thread; 0 leaves the library's default.
            watch: Looks at a share of the answers; None looks at none.
        """
        super().__init__(engine.model.config.vocab, max_waiting=max_waiting, threads=threads)
        self.engine = engine
        self.prefixes = Prefixes(engine)
        self.watch = watch
        self._chunk_tokens = prefill_tokens

    def close(self) -> None:
        """Stop; what is still in flight ends as cancelled."""
        super().close()
        self.prefixes.clear()

    # One step, in order.

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

    def _open(self, begun: Waiting[OpenSequence]) -> None:
        engine, order = self.engine, begun.order
        begun.sequence = engine.adopt(OpenSequence(engine.model, engine.pool, self._policy(order), engine.backend))
        begun.sequence.prompt = len(order.ids)
        self.prefixes.begin(begun.sequence, order)
        try:
            begun.sequence.reserve(len(order.ids), min(order.max_tokens, 1024))
        except PoolExhausted:
            self._put_back(begun)

    def _fits(self, begun: Waiting[OpenSequence]) -> bool:
        """Whether there is a place, and pages for what it will hold and for what its prefill holds meanwhile."""
        engine, order = self.engine, begun.order
        policy = self._policy(order)
        if len(self._running) + len(begun.answers) > engine.max_batch and self._running:
            return False
        new = min(order.max_tokens, 256)
        wanted = engine.pages(policy, len(order.ids), new)
        if policy.method.cut_at_end:
            # Heads that are cut only at the prompt's end hold all of it until then.
            wanted = max(wanted, engine.pages(engine.dense, len(order.ids), 0))
        wanted += (len(begun.answers) - 1) * engine.pages(policy, 0, new)
        return self._room(wanted) or not self._running

    def _read(self, begun: Waiting[OpenSequence]) -> None:
        order, s, left = begun.order, begun.sequence, self._chunk_tokens
        policy = self._policy(order)
        assert s is not None  # noqa: S101  # set on admission
        while left > 0 and self._reading is begun:
            begin = s.memory.length
            size = next_chunk(policy.method, begin, len(order.ids))
            if policy.method.chunk_invariant and policy.method.supports.chunked_prefill:
                size = min(size, self._chunk_tokens)
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
                begun.end(fault(error))
            else:
                if not begun.last_try:
                    self.prefixes.add(s, order)
                if s.memory.length == len(order.ids):
                    self._reading = None
                    self._begin(begun, s, logits[-1])

    def _chunk(self, begun: Waiting[OpenSequence], s: OpenSequence, chunk: Sequence[int]) -> Tensor:
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

    def _begin(self, begun: Waiting[OpenSequence], s: OpenSequence, logits: Tensor) -> None:
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

    def _account(self, answer: Answer[OpenSequence]) -> None:
        """What an order holds as one of its answers ends."""
        facts, order = answer.order.facts, answer.order
        mine = [a.sequence for a in self._running if a.order is order and a.sequence is not None]
        facts.kv_bytes = max(facts.kv_bytes, held_bytes(mine))
        # The last token drawn was never fed, so nothing of it is held.
        tokens = len(order.ids) + max(len(answer.produced) - 1, 0)
        facts.kv_bytes_dense = max(facts.kv_bytes_dense, self.engine.dense_bytes(tokens))
        facts.full_steps = max(facts.full_steps, max((s.full_steps for s in mine), default=0))

    def _ended(self, answer: Answer[OpenSequence]) -> None:
        if self.watch is not None and len(self._later) < _MOST_LATER:
            work = self.watch.work(self.engine, answer)
            self._later += () if work is None else (work,)

    # Pages.

    def _policy(self, order: Order) -> Policy:
        """The method at work."""
        return order.policy or self.engine.policy

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
        may = [a for a in self._running if self._policy(a.order).method.supports.preemption == "recompute"]
        victim = max(may or self._running, key=lambda a: a.number)
        self._running.remove(victim)
        if self._running:
            self._again(victim)
        else:
            victim.end(TooLarge(_TOO_LARGE))

    def _put_back(self, begun: Waiting[OpenSequence]) -> None:
        self._reading = None
        begun.lose()
        if not self._running:
            if begun.last_try:
                begun.end(TooLarge(_TOO_LARGE))
                return
            # Pages that cached prefixes share are copied where a run must move: once more, and leave none behind.
            begun.last_try = True
            self.prefixes.clear()
        with self._news:
            self._queue(begun)

    def _again(self, answer: Answer[OpenSequence]) -> None:
        """An answer that lost its pages waits, by its arrival in front of its class."""
        answer.lose()
        told = len(answer.order.ids)
        with self._news:
            self._queue(Waiting(answer.order, answer.context, time.perf_counter(), [answer], told))
