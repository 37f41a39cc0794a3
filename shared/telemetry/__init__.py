"""Logs, metrics, traces and the context that they share, in the field's names.

Knows structlog, prometheus_client and OpenTelemetry for all. Domain rooms call `stage("pre")` and `log()`; what they
touch is a few plain functions.
"""

from shared.telemetry.context import Context, bind, context, fresh_context, traceparent
from shared.telemetry.logs import configure_logs, log
from shared.telemetry.metrics import (
    BATCH_SIZE,
    DROPPED_FRAMES,
    ERRORS,
    IN_FLIGHT,
    JOBS,
    KERNEL_CALLS,
    LATENCY,
    METRICS_CONTENT_TYPE,
    QUEUE_DEPTH,
    QUEUE_TIME,
    READY_REPLICAS,
    REQUEST_LATENCY,
    REQUESTS,
    SECONDS,
    held_back,
    kernel_called,
    observe,
    observe_fidelity,
    observe_queue_time,
    observe_stage,
    render_metrics,
    stage,
)
from shared.telemetry.server_spans import begin_http_span, begin_rpc_span, finish_http_span, finish_rpc_span
from shared.telemetry.spans import (
    NO_SPAN,
    Span,
    configure_tracing,
    find_exemplar,
    is_tracing,
    record_span,
    shut_down_tracing,
    span,
)

__all__ = [
    "BATCH_SIZE", "DROPPED_FRAMES", "ERRORS", "IN_FLIGHT", "JOBS", "KERNEL_CALLS", "LATENCY",
    "METRICS_CONTENT_TYPE", "NO_SPAN", "QUEUE_DEPTH", "QUEUE_TIME", "READY_REPLICAS", "REQUESTS", "REQUEST_LATENCY",
    "SECONDS", "Context", "Span", "begin_http_span", "begin_rpc_span", "bind", "configure_logs",
    "configure_tracing", "context", "find_exemplar", "finish_http_span", "finish_rpc_span", "fresh_context",
    "held_back", "is_tracing", "kernel_called", "log", "observe", "observe_fidelity", "observe_queue_time",
    "observe_stage", "record_span", "render_metrics", "shut_down_tracing", "span", "stage", "traceparent",
]  # fmt: skip
