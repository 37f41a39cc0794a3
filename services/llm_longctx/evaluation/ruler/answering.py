"""Answers to RULER-form samples, greedily, by sequences that decode together.

`agnostic`: the method compresses the context alone, and the question comes as decode steps. `aware`: it compresses
context and question together. Methods that read densely share one reading of a context, whoever asks first, so that
an answer does not depend on who did. Work comes in pieces, so that others can be served in between. Knows tokens; no
text.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from services.llm_longctx.engine.attention.method_policy import Policy
from services.llm_longctx.engine.model_runner import ModelRunner
from services.llm_longctx.engine.offline.open_sequence import OpenSequence
from services.llm_longctx.engine.prefix_cache import PrefixCache

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
    """What was generated, and what was held.

    Attributes:
        tokens: The answer, without a stop token.
        kv_bytes: Pages held when the method had compressed.
        kv_bytes_end: Pages held at the end.
        density: Share of the prompt's attention that was read.
        seconds: Wall time; of a block's answers together, divided by their number.
    """

    tokens: list[int] = field(default_factory=list)
    kv_bytes: int = 0
    kv_bytes_end: int = 0
    density: float = 1.0
    seconds: float = 0.0


@dataclass(slots=True)
class _Running:
    sequence: OpenSequence
    answer: Answer
    fed: list[int]
    left: int

    is_over: bool = False


def answer_prompts(
    runner: ModelRunner,
    prefixes: PrefixCache,
    prompts: Sequence[PromptTokens],
    stop: Collection[int],
    protocol: Protocol,
) -> Generator[None, None, list[Answer]]:
    """Answer a block of prompts; returns one answer each, in order.

    Args:
        runner: Runs the decoder.
        prefixes: What is known of contexts, and gives way where memory runs out.
        prompts: What to answer.
        stop: Tokens that end an answer.
        protocol: What a method compresses.

    Raises:
        PoolExhausted: They don't fit beside what is held; ask for fewer at a time.
    """
    begun, running = time.perf_counter(), list[_Running]()
    try:
        for prompt in prompts:
            running.append(one := _open(runner, prompt, protocol))
            yield from _read(runner, prefixes, one, prompt, stop, protocol)
        while batch := [one for one in running if not one.is_over]:
            prefixes.make_room(sum(one.sequence.state.cache.pages_needed() for one in batch))
            logits = runner.decode([one.sequence.state for one in batch], [one.fed.pop(0) for one in batch])
            for one, row in zip(batch, logits.argmax(-1).tolist(), strict=True):
                if not one.fed:
                    _append(one, row, stop)
            yield
        for one in running:
            one.answer.seconds = (time.perf_counter() - begun) / len(prompts)
        return [one.answer for one in running]
    finally:
        for one in running:
            one.sequence.close()


def _open(runner: ModelRunner, prompt: PromptTokens, protocol: Protocol) -> _Running:
    fed = list(prompt.question_ids) if protocol == "agnostic" else []
    return _Running(OpenSequence(runner, runner.open(prompt.policy)), Answer(), fed, prompt.max_new_tokens)


def _read(
    runner: ModelRunner,
    prefixes: PrefixCache,
    one: _Running,
    prompt: PromptTokens,
    stop: Collection[int],
    protocol: Protocol,
) -> Generator[None, None, None]:
    """Read what the method compresses, in chunks as served."""
    ids = [*prompt.context_ids, *(prompt.question_ids if protocol == "aware" else ())]
    yield from _read_prefix(runner, prefixes, prompt)
    logits = yield from one.sequence.read(ids, len(one.fed) + one.left, prefixes)
    one.answer.kv_bytes = one.sequence.kv_bytes()
    if densities := one.sequence.state.densities:
        one.answer.density = sum(densities) / len(densities)
    if not one.fed and len(logits):
        _append(one, int(logits[-1].argmax()), stop)


def _read_prefix(runner: ModelRunner, prefixes: PrefixCache, prompt: PromptTokens) -> Generator[None, None, None]:
    """Read a context densely once for all methods that do, unless it is known."""
    method = prompt.policy.method
    if not prompt.context_ids or method.identity() or not method.supports.prefix_reuse:
        return
    if prompt.policy.cache_bits != 16:
        return
    dense = OpenSequence(runner, runner.open(runner.dense))
    try:
        yield from dense.read(prompt.context_ids, 0, prefixes, shares=True)
    finally:
        dense.close()


def _append(one: _Running, token: int, stop: Collection[int]) -> None:
    one.is_over = token in stop
    if not one.is_over:
        one.answer.tokens.append(token)
        one.fed.append(token)
        one.is_over = len(one.answer.tokens) >= one.left
    if one.is_over:
        one.answer.kv_bytes_end = one.sequence.kv_bytes()
