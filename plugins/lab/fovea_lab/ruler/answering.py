"""Answers to RULER-form samples, greedily, by sequences that decode together.

`agnostic`: the method compresses the context alone, and the question comes as decode steps. `aware`: it compresses
context and question together. Methods that read densely share one reading of a context, whoever asks first, so that
an answer does not depend on who did. Work comes in pieces, so that others can be served in between. Knows tokens; no
text.
"""

import time
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from services.llm_longctx.engine.attention.method_policy import Policy
from services.llm_longctx.engine.kv_manager import PagedState
from services.llm_longctx.engine.model_runner import ModelRunner
from services.llm_longctx.engine.offline.decode_loop import decode, read_prompt
from services.llm_longctx.engine.prefix_cache import PrefixCache
from services.llm_longctx.engine.requests.request import GenerationRequest

Protocol = Literal["agnostic", "aware"]


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """One sample's tokens, the policy that serves it, and how long its answer may be."""

    context_ids: Sequence[int]
    question_ids: Sequence[int]
    policy: Policy
    max_new_tokens: int


@dataclass(slots=True)
class Answer:
    """The generated tokens, and the bytes that were held.

    Attributes:
        tokens: The answer, without a stop token.
        kv_bytes: Pages held when the method had compressed.
        kv_bytes_end: Pages held at the end.
        kv_bytes_peak: Most pages held while the method read.
        density: Share of the prompt's attention that was read.
        seconds: Wall time; of a block's answers together, divided by their number.
    """

    tokens: list[int] = field(default_factory=list)
    kv_bytes: int = 0
    kv_bytes_end: int = 0
    kv_bytes_peak: int = 0
    density: float = 1.0
    seconds: float = 0.0


@dataclass(slots=True)
class _Running:
    """A sequence that is fed the question, if it did not read it, and then goes on greedily."""

    state: PagedState
    answer: Answer
    fed: list[int]
    left: int
    stop: Collection[int]

    is_over: bool = False

    def next_token(self) -> int | None:
        """Return the next token of the question or of the answer; None behind the end."""
        return None if self.is_over else self.fed.pop(0)

    def take(self, logits: Tensor) -> None:
        """Append the likeliest token [V] to the answer, once the question has been read."""
        if self.fed:
            return
        token = int(logits.argmax())
        self.is_over = token in self.stop
        if not self.is_over:
            self.answer.tokens.append(token)
            self.fed.append(token)
            self.is_over = len(self.answer.tokens) >= self.left
        if self.is_over:
            self.answer.kv_bytes_end = self.state.cache.nbytes


def answer_prompts(
    runner: ModelRunner,
    prefixes: PrefixCache,
    prompts: Sequence[PromptTokens],
    stop: Collection[int],
    protocol: Protocol,
) -> Generator[None, None, list[Answer]]:
    """Answer a block of prompts; returns one answer each, in order.

    Cached contexts (`prefixes`) give way where memory runs out; a token of `stop` ends an answer.

    Raises:
        PoolExhausted: They don't fit next to what is held; ask for fewer at a time.
    """
    begun, running = time.perf_counter(), list[_Running]()
    try:
        for prompt in prompts:
            fed = list(prompt.question_ids) if protocol == "agnostic" else []
            one = _Running(runner.open(prompt.policy), Answer(), fed, prompt.max_new_tokens, stop)
            running.append(one)
            yield from _read(runner, prefixes, one, prompt, protocol)
        yield from decode(runner, running, prefixes=prefixes)
        for one in running:
            one.answer.seconds = (time.perf_counter() - begun) / len(prompts)
        return [one.answer for one in running]
    finally:
        for one in running:
            one.state.close()


def _read(
    runner: ModelRunner, prefixes: PrefixCache, one: _Running, prompt: PromptTokens, protocol: Protocol
) -> Generator[None, None, None]:
    """Read what the method compresses, in chunks as served."""
    ids = [*prompt.context_ids, *(prompt.question_ids if protocol == "aware" else ())]
    yield from _read_prefix(runner, prefixes, one.state, prompt.context_ids)
    start = prefixes.attach(one.state, _request(ids))
    one.state.reserve(len(ids), len(one.fed) + one.left)
    logits = yield from read_prompt(runner, one.state, ids, start=start, prefixes=prefixes)
    one.answer.kv_bytes, one.answer.kv_bytes_peak = one.state.cache.nbytes, one.state.peak_bytes
    one.answer.density = one.state.prefill_density
    if len(logits):
        one.take(logits[-1])


def _read_prefix(
    runner: ModelRunner, prefixes: PrefixCache, state: PagedState, ids: Sequence[int]
) -> Generator[None, None, None]:
    """Read a context densely once for all methods that do, unless it is known."""
    method = state.policy.method
    if not ids or method.identity() or not method.supports.prefix_reuse or state.policy.cache_bits != 16:
        return
    dense, request = runner.open(runner.dense), _request(ids)
    try:
        start = prefixes.attach(dense, request)
        dense.reserve(len(ids), 0)
        if start + runner.pool.page >= len(ids):
            return
        for _ in read_prompt(runner, dense, ids, start=start, keep=0, prefixes=prefixes):
            yield
            prefixes.add(dense, request)
    finally:
        dense.close()


def _request(ids: Sequence[int]) -> GenerationRequest:
    return GenerationRequest(list(ids), max_tokens=1)
