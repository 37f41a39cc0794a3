"""Stages of a request: one number in a histogram, and one span."""

from __future__ import annotations

import time
from functools import cache

from prometheus_client import Histogram

from shared.telemetry.context import context
from shared.telemetry.metrics import LATENCY, QUEUE_TIME, Stage, observe
from shared.telemetry.spans import Attributes, is_tracing, record_span

_SPAN_NAMES = {"pre": "preprocess", "run": "inference", "post": "postprocess"}


class stage:  # noqa: N801  # as `bind`
    """Time a block as one stage of the current service and model, for example `with stage("pre"):`."""

    __slots__ = ("_begun", "_name")

    def __init__(self, name: Stage) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._begun = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        observe_stage(self._name, time.perf_counter() - self._begun)


def observe_stage(name: Stage, seconds: float, attributes: Attributes | None = None) -> None:
    """Record a stage that was timed elsewhere and ended just now; `attributes` are its span's."""
    ctx = context()
    observe(_timer(ctx.service, ctx.model, name), seconds)
    if is_tracing():
        record_span(_SPAN_NAMES.get(name, name), seconds, attributes)


def observe_queue_time(seconds: float) -> None:
    """Record that the request of the current context waited, up to now."""
    ctx = context()
    observe(_queue_timer(ctx.service, ctx.model), seconds)
    record_span("queue", seconds)


@cache
def _timer(service: str, model: str, name: Stage) -> Histogram:
    return LATENCY.labels(service, model, name)


@cache
def _queue_timer(service: str, model: str) -> Histogram:
    return QUEUE_TIME.labels(service, model)
