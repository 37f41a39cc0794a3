"""Prometheus metrics of text generation, under the names that vLLM uses for them.

Callers pass plain numbers; the model is the current context's. `method` is the attention method that served, and empty
for models whose attention is their own.
"""

import weakref
from collections.abc import Callable
from functools import cache
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from shared.telemetry import BATCH_SIZE, SECONDS, context, observe

_FINE_SECONDS = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2.5)
_OF_METHOD = ["model", "method"]

_FIRST_TOKEN = Histogram(
    "fovea_time_to_first_token_seconds",
    "From a prompt's arrival in the engine to the first token of its answer.",
    _OF_METHOD,
    buckets=SECONDS,
)
_PER_TOKEN = Histogram(
    "fovea_time_per_output_token_seconds",
    "Mean time between the tokens of an answer, the first one left out.",
    _OF_METHOD,
    buckets=_FINE_SECONDS,
)
_PROMPT_TOKENS = Counter("fovea_prompt_tokens_total", "Prompt tokens, cached ones included.", _OF_METHOD)
_GENERATED = Counter("fovea_generation_tokens_total", "Tokens of answers, counted when an answer ends.", _OF_METHOD)
_CACHE_QUERIES = Counter("fovea_prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache.", ["model"])
_CACHE_HITS = Counter("fovea_prefix_cache_hits_total", "Prompt tokens that came from the prefix cache.", ["model"])
_PREEMPTIONS = Counter("fovea_preemptions_total", "Answers that lost their pages and were read again.", ["model"])
_KV_RATIO = Histogram(
    "fovea_kv_ratio",
    "Bytes of keys and values that a request held, of those that dense attention would hold.",
    _OF_METHOD,
    buckets=(0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1),
)
_RUNNING = Gauge("fovea_requests_running", "Answers being read or written.", ["model"])
_WAITING = Gauge("fovea_requests_waiting", "Requests that wait for their prefill.", ["model"])
_PAGES_USED = Gauge(
    "fovea_kv_pages_used", "Pages of keys and values that are held, cached prefixes included.", ["model"]
)
_PAGES_FREE = Gauge("fovea_kv_pages_free", "Pages of keys and values that may still be held.", ["model"])


def observe_first_token(method: str, seconds: float) -> None:
    """Observe the time to the first token of an answer."""
    observe(_FIRST_TOKEN.labels(context().model, method), seconds)


def observe_batch_size(size: int) -> None:
    """Observe the sequences of one decode step."""
    ctx = context()
    _batch_size(ctx.service, ctx.model).observe(size)


def count_prompt(method: str, tokens: int, cached: int) -> None:
    """Count a prompt's tokens, and those of them that came from the prefix cache."""
    model = context().model
    _PROMPT_TOKENS.labels(model, method).inc(tokens)
    _CACHE_QUERIES.labels(model).inc(tokens)
    _CACHE_HITS.labels(model).inc(cached)


def count_answer(method: str, tokens: int, seconds: float, kv_ratio: float) -> None:
    """Count an answer of so many tokens, `seconds` from its first to its last."""
    model = context().model
    _GENERATED.labels(model, method).inc(tokens)
    observe(_KV_RATIO.labels(model, method), kv_ratio)
    if tokens > 1:
        observe(_PER_TOKEN.labels(model, method), seconds / (tokens - 1))


def count_preemption() -> None:
    """Count an answer that lost its pages."""
    _PREEMPTIONS.labels(context().model).inc()


def watch_scheduler(model: str, scheduler: Any) -> None:
    """Show what runs and what waits in a `Scheduler`, as long as it lives."""
    _watch(_WAITING, model, scheduler, lambda one: len(one.waiting))
    _watch(_RUNNING, model, scheduler, lambda one: one.in_flight - len(one.waiting))


def watch_pages(model: str, pool: Any) -> None:
    """Show the pages of a `PagePool` that are used and free, as long as it lives."""
    _PREEMPTIONS.labels(model)  # 0 is an answer, too
    _watch(_PAGES_USED, model, pool, lambda one: one.held)
    _watch(_PAGES_FREE, model, pool, lambda one: one.free)


def _watch(gauge: Gauge, model: str, owner: Any, read: Callable[[Any], int]) -> None:
    """Let a gauge ask its owner at each scrape; the registry must not keep an unloaded model in memory."""
    reference = weakref.ref(owner)

    def ask() -> float:
        found = reference()
        return 0 if found is None else read(found)

    gauge.labels(model).set_function(ask)


@cache
def _batch_size(service: str, model: str) -> Histogram:
    return BATCH_SIZE.labels(service, model)
