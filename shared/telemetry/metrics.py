"""Metrics of every service, in the field's names. They live in prometheus_client's default registry.

While tracing is on, samples of histograms name a trace as their exemplar, where OpenMetrics is asked for.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import choose_encoder

from shared.telemetry.spans import find_exemplar

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

METRICS_CONTENT_TYPE = CONTENT_TYPE_LATEST


def observe(histogram: Histogram, value: float) -> None:
    """Observe a value; while tracing is on, the current span is its exemplar."""
    histogram.observe(value, find_exemplar())


def kernel_called(op: str, backend: str, reason: str) -> None:
    """Count a call of an attention kernel; `reason` says why a faster back end was passed over, if one was."""
    _kernel(op, backend, reason).inc()


def metrics_text() -> bytes:
    """Everything counted in this process, in the Prometheus text format."""
    return generate_latest()


def render_metrics(accept: str = "") -> tuple[bytes, str]:
    """Everything counted here, and its content type: OpenMetrics, with exemplars, if `accept` names it, else text."""
    encode, content_type = choose_encoder(accept)
    return encode(REGISTRY), content_type


@cache
def _kernel(op: str, backend: str, reason: str) -> Counter:
    return KERNEL_CALLS.labels(op, backend, reason)
