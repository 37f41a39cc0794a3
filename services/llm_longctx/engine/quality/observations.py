"""Observations: what a scheduler tells about its sequences, as metrics and as spans of their requests.

A stage is observed when it ends, in the context of the request. Knows sequences; knows no backend.
"""

import time
from typing import Any

from services.llm_longctx import generation_metrics
from services.llm_longctx.engine.sequence import Sequence
from shared import telemetry


def observe_queue(sequence: Sequence[Any]) -> None:
    """The sequence is admitted."""
    now = time.perf_counter()
    sequence.context.run(telemetry.observe_queue_time, now - sequence.since)
    sequence.since = now


def observe_prefill(sequence: Sequence[Any]) -> None:
    """Its prompt was read, for its siblings, too; what is read again after a preemption is not counted again."""
    request, run, now = sequence.request, sequence.context.run, time.perf_counter()
    stats, tokens = request.stats, len(request.prompt_ids)
    if not stats.preempted:
        run(generation_metrics.count_prompt, method_of(sequence), tokens, stats.cached_tokens)
    attributes = {
        "gen_ai.usage.input_tokens": tokens,
        "gen_ai.usage.cache_read.input_tokens": stats.cached_tokens,
        "fovea.method": method_of(sequence) or None,
        "fovea.density": stats.prefill_density,
    }
    run(telemetry.observe_stage, "prefill", now - sequence.since, attributes)
    for one in (sequence, *sequence.siblings):
        one.since = now


def observe_decode_step(batch: list[Sequence[Any]]) -> None:
    """So many sequences are decoded together."""
    batch[0].context.run(generation_metrics.observe_batch_size, len(batch))


def observe_first_token(sequence: Sequence[Any]) -> None:
    """The first token of an answer was drawn."""
    sequence.first_token_at = time.perf_counter()
    seconds = sequence.first_token_at - sequence.arrived_at
    sequence.context.run(generation_metrics.observe_first_token, method_of(sequence), seconds)


def observe_preemption(sequence: Sequence[Any]) -> None:
    """A sequence loses what it holds; its time so far is a span, and what it decodes later another."""
    run, attributes = sequence.context.run, {"fovea.preempted": True}
    run(generation_metrics.count_preemption)
    if sequence.output_ids:  # else it is an answer that found no room behind its prompt
        run(telemetry.record_span, "decode", time.perf_counter() - sequence.since, attributes)


def observe_decode(sequence: Sequence[Any]) -> None:
    """An answer is over."""
    now, run, stats = time.perf_counter(), sequence.context.run, sequence.request.stats
    tokens = len(sequence.output_ids)
    if tokens:
        seconds = now - sequence.first_token_at
        run(generation_metrics.count_answer, method_of(sequence), tokens, seconds, stats.kv_ratio)
    attributes = {
        "gen_ai.usage.output_tokens": tokens,
        "fovea.method": method_of(sequence) or None,
        "fovea.kv_bytes": stats.kv_bytes,
    }
    run(telemetry.observe_stage, "decode", now - sequence.since, attributes)


def method_of(sequence: Sequence[Any]) -> str:
    """Name of the attention method that serves; empty where the model has one of its own."""
    policy = sequence.request.policy
    return policy.method.name if policy is not None else ""
