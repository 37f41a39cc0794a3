"""Logs, metrics and trace context, in the field's names. Knows structlog and prometheus_client for all.

Domain rooms call `stage("pre")` and `log()`; what they touch is a few plain functions. Counters live in
prometheus_client's own default registry, which `/metrics` renders.
"""

from __future__ import annotations

import logging
import random
import sys
import time
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, Histogram, generate_latest

__all__ = [
    "BATCH_SIZE",
    "DROPPED_FRAMES",
    "ERRORS",
    "FIDELITY_DELTA",
    "FIDELITY_HELD",
    "FIDELITY_KL",
    "FIDELITY_TOP1",
    "IN_FLIGHT",
    "JOBS",
    "KERNEL_CALLS",
    "LATENCY",
    "METRICS_CONTENT_TYPE",
    "QUEUE_DEPTH",
    "READY_REPLICAS",
    "REQUESTS",
    "REQUEST_LATENCY",
    "Context",
    "bind",
    "configure_logs",
    "context",
    "fresh_context",
    "held_back",
    "kernel_called",
    "log",
    "metrics_text",
    "observe_fidelity",
    "observe_stage",
    "stage",
    "traceparent",
]

Stage = Literal["queue", "pre", "run", "post"]

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

REQUESTS = Counter("fovea_requests_total", "Requests by outcome.", ["service", "model", "route", "status"])
ERRORS = Counter("fovea_errors_total", "Errors by code.", ["service", "model", "code"])
REQUEST_LATENCY = Histogram("fovea_request_seconds", "Whole request.", ["service", "route"], buckets=_SECONDS)
LATENCY = Histogram("fovea_stage_seconds", "One stage of a request.", ["service", "model", "stage"], buckets=_SECONDS)
BATCH_SIZE = Histogram(
    "fovea_batch_size", "Requests per batch.", ["service", "model"], buckets=(1, 2, 4, 8, 16, 32, 64)
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
    "fovea_fidelity_kl_nats",
    "KL(dense || method) per token of answers that were run again densely.",
    ["model", "method"],
    buckets=_NATS,
)
FIDELITY_TOP1 = Histogram(
    "fovea_fidelity_top1_agreement",
    "Share of tokens on which a method agrees with dense attention.",
    ["model", "method"],
    buckets=(0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99, 1),
)
FIDELITY_DELTA = Histogram(
    "fovea_fidelity_loss_nats",
    "Log-likelihood per token that a method loses against dense attention.",
    ["model", "method"],
    buckets=(-1, -0.1, -0.01, 0, *_NATS),
)
FIDELITY_HELD = Gauge(
    "fovea_fidelity_held_back",
    "Variants of a method (its knobs, plan and budget) that dense serves in place of.",
    ["model", "method"],
)

METRICS_CONTENT_TYPE = CONTENT_TYPE_LATEST


@dataclass(frozen=True, slots=True)
class Context:
    """Who is being served: what every log line and metric of one request carries."""

    request_id: str = ""
    service: str = ""
    model: str = ""
    traceparent: str = ""


_context: ContextVar[Context] = ContextVar("fovea_context", default=Context())  # noqa: B039


def context() -> Context:
    """The context of the request that this task or thread serves."""
    return _context.get()


class bind:  # noqa: N801  # used like a function; a class costs a third of a generator, several times per request
    """Fill fields of the context for the length of a block, for example `with bind(model="pranet"):`."""

    __slots__ = ("_fields", "_token")

    def __init__(self, **fields: str) -> None:
        self._fields = fields

    def __enter__(self) -> Context:
        now = _context.get()
        filled = Context(
            self._fields.get("request_id", now.request_id),
            self._fields.get("service", now.service),
            self._fields.get("model", now.model),
            self._fields.get("traceparent", now.traceparent),
        )
        self._token = _context.set(filled)
        return filled

    def __exit__(self, *_: object) -> None:
        _context.reset(self._token)


def fresh_context(request_id: str | None, traceparent_header: str | None, service: str) -> Context:
    """The context of a new request: ids that came with it are kept when well formed, made otherwise."""
    rid = request_id if request_id and len(request_id) <= 128 and request_id.isprintable() else _hex(8)
    return Context(request_id=rid, service=service, traceparent=traceparent(traceparent_header))


def traceparent(incoming: str | None) -> str:
    """A W3C `traceparent` for the next hop: the incoming trace with a span of ours, or a new trace."""
    parts = (incoming or "").strip().split("-")
    hexed = all(p and all(c in "0123456789abcdef" for c in p) for p in parts)
    good = len(parts) == 4 and hexed and [len(p) for p in parts] == [2, 32, 16, 2] and parts[0] != "ff"
    trace, flags = (parts[1], parts[3]) if good and set(parts[1]) != {"0"} else (_hex(16), "01")
    return f"00-{trace}-{_hex(8)}-{flags}"


def _hex(size: int) -> str:
    """Random bytes as hex. Ids are no secrets, and asking the system for each costs 40 µs under load."""
    return f"{random.getrandbits(8 * size):0{2 * size}x}"


class stage:  # noqa: N801  # as `bind`
    """Time a block as one stage of the current service and model, for example `with stage("pre"):`."""

    __slots__ = ("_begun", "_name")

    def __init__(self, name: Stage) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._begun = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        observe_stage(self._name, time.perf_counter() - self._begun)


def observe_stage(name: Stage, seconds: float) -> None:
    """Record a stage that was timed elsewhere."""
    ctx = _context.get()
    _timer(ctx.service, ctx.model, name).observe(seconds)


@cache
def _timer(service: str, model: str, name: Stage) -> Histogram:
    return LATENCY.labels(service, model, name)


def kernel_called(op: str, backend: str, reason: str) -> None:
    """Count a call of an attention kernel; `reason` says why a faster back end was passed over, if one was."""
    _kernel(op, backend, reason).inc()


@cache
def _kernel(op: str, backend: str, reason: str) -> Counter:
    return KERNEL_CALLS.labels(op, backend, reason)


def observe_fidelity(method: str, kl: float, agreement: float, delta: float) -> None:
    """Record how one answer under an attention method compares with dense attention on the same tokens.

    Args:
        method: Name of the method.
        kl: KL(dense ‖ method), mean nats per token.
        agreement: Share of tokens on which both find the same one likeliest.
        delta: Log-likelihood that the method loses, nats per token.
    """
    labels = (_context.get().model, method)
    FIDELITY_KL.labels(*labels).observe(kl)
    FIDELITY_TOP1.labels(*labels).observe(agreement)
    FIDELITY_DELTA.labels(*labels).observe(delta)


def held_back(method: str, variants: int) -> None:
    """Record how many variants of an attention method dense serves in place of."""
    FIDELITY_HELD.labels(_context.get().model, method).set(variants)


def metrics_text() -> bytes:
    """Everything counted in this process, in the Prometheus text format."""
    return generate_latest()


def _add_context(_logger: Any, _name: str, event: dict[str, Any]) -> dict[str, Any]:
    ctx = _context.get()
    for key in ("request_id", "service", "model"):
        if value := getattr(ctx, key):
            event.setdefault(key, value)
    if ctx.traceparent:
        event.setdefault("trace_id", ctx.traceparent.split("-")[1])
    return event


def configure_logs(level: str = "INFO", form: Literal["json", "console"] = "console") -> None:
    """Route structlog and the standard library to stderr in one form."""
    render: Any = structlog.processors.JSONRenderer() if form == "json" else structlog.dev.ConsoleRenderer(colors=False)
    chain: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_context,
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*chain, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=render, foreign_pre_chain=chain))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)


def log(name: str = "fovea") -> Any:
    """A logger whose lines carry request id, service and model of the current context."""
    return structlog.stdlib.get_logger(name)
