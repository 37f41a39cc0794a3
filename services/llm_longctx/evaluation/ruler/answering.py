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
from services.llm_longctx.engine.kv_manager import PagedState
from services.llm_longctx.engine.model_runner import ModelRunner
from services.llm_longctx.engine.prefix_cache import PrefixCache
from services.llm_longctx.engine.sequence import GenerationRequest

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
    state: PagedState
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
            prefixes.make_room(sum(one.state.cache.pages_needed() for one in batch))
            logits = runner.decode([one.state for one in batch], [one.fed.pop(0) for one in batch])
            for one, row in zip(batch, logits.argmax(-1).tolist(), strict=True):
                if not one.fed:
                    _append(one, row, stop)
            yield
        for one in running:
            one.answer.seconds = (time.perf_counter() - begun) / len(prompts)
        return [one.answer for one in running]
    finally:
        for one in running:
            one.state.close()


def _open(runner: ModelRunner, prompt: PromptTokens, protocol: Protocol) -> _Running:
    fed = list(prompt.question_ids) if protocol == "agnostic" else []
    return _Running(runner.open(prompt.policy), Answer(), fed, prompt.max_new_tokens)


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
    yield from _read_prefix(runner, prefixes, one.state, prompt.context_ids)
    at, logits = prefixes.attach(one.state, _request(ids)), None
    one.state.reserve(len(ids), len(one.fed) + one.left)
    while at < len(ids):
        size = one.state.policy.next_chunk(at, len(ids))
        last = at + size == len(ids)
        prefixes.make_room(one.state.cache.pages_needed(size))
        logits = runner.prefill(one.state, ids[at : at + size], last=last, keep=int(last))
        at += size
        yield
    one.answer.kv_bytes = one.state.cache.nbytes
    if one.state.densities:
        one.answer.density = sum(one.state.densities) / len(one.state.densities)
    if not one.fed and logits is not None:
        _append(one, int(logits[-1].argmax()), stop)


def _read_prefix(
    runner: ModelRunner, prefixes: PrefixCache, state: PagedState, ids: Sequence[int]
) -> Generator[None, None, None]:
    """Read a context densely once for all methods that do, unless it is known."""
    method = state.policy.method
    if not ids or method.identity() or not method.supports.prefix_reuse or state.policy.cache_bits != 16:
        return
    dense, request = runner.open(runner.dense), _request(ids)
    try:
        at = prefixes.attach(dense, request)
        dense.reserve(len(ids), 0)
        if at + runner.pool.page >= len(ids):
            return
        while at < len(ids):
            size = dense.policy.next_chunk(at, len(ids))
            prefixes.make_room(dense.cache.pages_needed(size))
            runner.prefill(dense, ids[at : at + size], last=at + size == len(ids), keep=0)
            at += size
            yield
            prefixes.add(dense, request)
    finally:
        dense.close()


def _request(ids: Sequence[int]) -> GenerationRequest:
    return GenerationRequest(list(ids), max_tokens=1)


def _append(one: _Running, token: int, stop: Collection[int]) -> None:
    one.is_over = token in stop
    if not one.is_over:
        one.answer.tokens.append(token)
        one.fed.append(token)
        one.is_over = len(one.answer.tokens) >= one.left
    if one.is_over:
        one.answer.kv_bytes_end = one.state.cache.nbytes
