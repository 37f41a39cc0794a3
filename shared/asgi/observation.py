"""Observation of one request: its span, its log context, its place among those in flight, and its metrics."""

from __future__ import annotations

import time
from functools import cache
from types import TracebackType
from typing import Any, Self

from shared import telemetry
from shared.telemetry import Context, Span

_in_flight = cache(telemetry.IN_FLIGHT.labels)
_requests = cache(telemetry.REQUESTS.labels)
_latency = cache(telemetry.REQUEST_LATENCY.labels)


class ObservedRequest:
    """One request while it is served. Whoever answers it fills the attributes; leaving the block records them.

    Attributes:
        trace: Request id and trace parent of the request.
        status: Status of the answer; 0 before it is sent.
        route: Template of the path, for metrics.
        model: Name of the model that answers, or empty.
        error: Code of the error that it was answered with, or empty.
        facts: Attributes of the span that are known at the end; those that are None are left out.
    """

    def __init__(self, service: str, method: str, path: str, trace: Context) -> None:
        self._service, self._method, self._path = service, method, path
        self._started = time.perf_counter()
        self._span: Span = telemetry.NO_SPAN
        self.trace = trace
        self.status = 0
        self.route = "unmatched"
        self.model = self.error = ""
        self.facts: dict[str, Any] = {}

    @property
    def seconds(self) -> float:
        """Seconds since it began."""
        return time.perf_counter() - self._started

    @property
    def traceparent(self) -> str:
        """Trace parent of what is called from here: of the request's own span, where there is one."""
        return self._span.traceparent or self.trace.traceparent

    @property
    def is_recorded(self) -> bool:
        """Whether facts are of use."""
        return self._span.is_recording

    def __enter__(self) -> Self:
        _in_flight(self._service).inc()
        trace = self.trace
        self._bound = telemetry.bind(request_id=trace.request_id, traceparent=trace.traceparent, service=self._service)
        self._bound.__enter__()
        self._span = telemetry.begin_http_span(self._method, self._path, trace.parent, trace.request_id)
        self._span.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _in_flight(self._service).dec()
        _requests(self._service, self.model, self.route, str(self.status)).inc()
        telemetry.observe(_latency(self._service, self.route), self.seconds)
        if self.error:
            telemetry.ERRORS.labels(self._service, self.model, self.error).inc()
        if self._span.is_recording:
            telemetry.finish_http_span(self._span, self._method, self.route, self.status)
            self._span.set_attributes(self.facts)
        self._span.__exit__(kind, error, trace)
        self._bound.__exit__()
