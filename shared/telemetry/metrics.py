"""Metrics of every service, in the field's names, and the stages of a request that they time.

They live in prometheus_client's default registry. A stage is one number in a histogram, and one span.

While tracing is on, samples of histograms name a trace as their exemplar, where OpenMetrics is asked for.
"""

import time
from functools import lru_cache
from typing import Any, Literal

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder

from shared.telemetry.context import context
from shared.telemetry.spans import Attributes, find_exemplar, is_tracing, record_span

Stage = Literal["pre", "run", "post", "prefill", "decode"]
"""Stages of a request: those of arrays, and those of text."""

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
"""Buckets of times."""

REQUESTS = Counter("fovea_requests_total", "Requests by outcome.", ["service", "model", "route", "status"])
ERRORS = Counter("fovea_errors_total", "Errors by code.", ["service", "model", "code"])
REQUEST_LATENCY = Histogram("fovea_request_seconds", "Whole request.", ["service", "route"], buckets=SECONDS)
QUEUE_TIME = Histogram(
    "fovea_request_queue_time_seconds",
    "Wait of a request: in a replica for its batch, in the gateway (no model) for its tenant's turn.",
    ["service", "model"],
    buckets=SECONDS,
)
LATENCY = Histogram("fovea_stage_seconds", "One stage of a request.", ["service", "model", "stage"], buckets=SECONDS)
BATCH_SIZE = Histogram(
    "fovea_batch_size",
    "Requests per batch; of text, sequences per decode step.",
    ["service", "model"],
    buckets=(1, 2, 4, 8, 16, 32, 64),
)
QUEUE_DEPTH = Gauge("fovea_queue_depth", "Requests or jobs that wait.", ["service", "model"])
JOBS = Gauge(
    "fovea_jobs", "Jobs by state: queued or running. Every gateway counts the same ones.", ["service", "state"]
)
READY_REPLICAS = Gauge("fovea_ready_replicas", "Ready replicas, as a gateway sees them.", ["service"])
DROPPED_FRAMES = Counter(
    "fovea_dropped_frames_total", "Frames of streams left out because newer ones had arrived.", ["service", "model"]
)
KERNEL_CALLS = Counter(
    "fovea_kernel_calls_total",
    "Calls of attention kernels, and why a faster one was passed over.",
    ["op", "backend", "reason"],
)
IN_FLIGHT = Gauge("fovea_in_flight", "Requests being served.", ["service"])

_NATS = (0.0001, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)

FIDELITY_KL = Histogram(
    "fovea_fidelity_kl_nats", "KL(dense || method) per token of answers that were run again densely.",
    ["model", "method"], buckets=_NATS,
)  # fmt: skip
FIDELITY_TOP1 = Histogram(
    "fovea_fidelity_top1_agreement", "Share of tokens on which a method agrees with dense attention.",
    ["model", "method"], buckets=(0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99, 1),
)  # fmt: skip
FIDELITY_DELTA = Histogram(
    "fovea_fidelity_loss_nats", "Log-likelihood per token that a method loses against dense attention.",
    ["model", "method"], buckets=(-1, -0.1, -0.01, 0, *_NATS),
)  # fmt: skip
FIDELITY_HELD = Gauge(
    "fovea_fidelity_held_back",
    "Variants of a method (its knobs, plan and budget) that dense serves in place of.",
    ["model", "method"],
)

METRICS_CONTENT_TYPE = CONTENT_TYPE_LATEST

_SPAN_NAMES = {"pre": "preprocess", "run": "inference", "post": "postprocess"}


def observe(histogram: Histogram, value: float) -> None:
    """Observe a value; while tracing is on, the current span is its exemplar."""
    histogram.observe(value, find_exemplar())


def kernel_called(op: str, backend: str, reason: str) -> None:
    """Count a call of an attention kernel; `reason` says why a faster back end was passed over, if one was."""
    _find(KERNEL_CALLS, op, backend, reason).inc()


def render_metrics(accept: str = "") -> tuple[bytes, str]:
    """Everything counted here, and its content type: OpenMetrics, with exemplars, if `accept` names it, else text."""
    encode, content_type = choose_encoder(accept)
    return encode(REGISTRY), content_type


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
    observe(_find(LATENCY, ctx.service, ctx.model, name), seconds)
    if is_tracing():
        record_span(_SPAN_NAMES.get(name, name), seconds, attributes)


def observe_queue_time(seconds: float) -> None:
    """Record that the request of the current context waited, up to now."""
    ctx = context()
    observe(_find(QUEUE_TIME, ctx.service, ctx.model), seconds)
    record_span("queue", seconds)


@lru_cache(maxsize=4096)
def _find(metric: Any, *labels: str) -> Any:
    return metric.labels(*labels)


def observe_fidelity(method: str, kl: float, agreement: float, delta: float) -> None:
    """Record how one answer under an attention method compares with dense attention on the same tokens.

    `kl` is KL(dense ‖ method), mean nats per token; `agreement` the share of tokens on which both find the same one
    likeliest; `delta` the log-likelihood that the method loses, nats per token.
    """
    labels = (context().model, method)
    FIDELITY_KL.labels(*labels).observe(kl)
    FIDELITY_TOP1.labels(*labels).observe(agreement)
    FIDELITY_DELTA.labels(*labels).observe(delta)


def held_back(method: str, variants: int) -> None:
    """Record how many variants of an attention method dense serves in place of."""
    FIDELITY_HELD.labels(context().model, method).set(variants)
