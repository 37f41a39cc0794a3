"""Spans: what one request did when, sent to an OpenTelemetry collector; nothing at all while tracing is off.

The parent of a span is the `traceparent` of the current context, so spans follow a request through threads, batches and
processes as its id does. Only `shared.telemetry.exporter` knows OpenTelemetry; it is imported when tracing is on.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from shared.telemetry.context import bind, context

if TYPE_CHECKING:
    from shared.telemetry.exporter import SpanRecorder

Attributes = Mapping[str, Any]
Kind = Literal["internal", "server", "client", "producer", "consumer"]


_recorder: SpanRecorder | None = None
"""The maker of spans once tracing is on."""


def configure_tracing(endpoint: str | None, service: str) -> None:
    """Send spans of `service` to an OTLP/HTTP endpoint, `http://collector:4318/v1/traces`; None: no tracing."""
    shut_down_tracing()
    if endpoint is not None:
        use_recorder(importlib.import_module("shared.telemetry.exporter").SpanRecorder(service, endpoint))


def use_recorder(recorder: SpanRecorder | None) -> None:
    """Make the spans of this process with `recorder`."""
    global _recorder  # noqa: PLW0603  # one per process, as the logger
    _recorder = recorder


def shut_down_tracing(seconds: float = 2.0) -> None:
    """Send what is left, for at most `seconds`, and switch tracing off."""
    recorder = _recorder
    use_recorder(None)
    if recorder is not None:
        recorder.shut_down(seconds)


def is_tracing() -> bool:
    """Whether spans are made in this process."""
    return _recorder is not None


class Span:
    """One piece of work. As a context manager it is the parent of what its block does, and ends with it.

    Attributes:
        traceparent: W3C trace parent for what it calls; empty while tracing is off.
    """

    __slots__ = ("_bound", "_otel", "traceparent")

    def __init__(self, otel: Any = None) -> None:
        """Wrap a span of OpenTelemetry's; without one it records nothing."""
        self._otel = otel
        self._bound: bind | None = None
        self.traceparent = ""
        if otel is not None:
            ids = otel.get_span_context()
            self.traceparent = f"00-{ids.trace_id:032x}-{ids.span_id:016x}-{ids.trace_flags:02x}"

    @property
    def is_recording(self) -> bool:
        """Whether attributes are of use."""
        return self._otel is not None and bool(self._otel.is_recording())

    def set_attributes(self, attributes: Attributes) -> None:
        """Set attributes; those that are None are left out."""
        if self._otel is not None:
            self._otel.set_attributes({name: value for name, value in attributes.items() if value is not None})

    def set_name(self, name: str) -> None:
        """Rename it, once more is known of it."""
        if self._otel is not None:
            self._otel.update_name(name)

    def activate(self) -> AbstractContextManager[object]:
        """A block whose spans are its children; it does not end with the block."""
        return bind(traceparent=self.traceparent) if self.traceparent else nullcontext()

    def fail(self, error: BaseException | str) -> None:
        """Mark it as failed: by an error of ours its code, else the name of its class.

        The error's text is left to the log, which has the trace's id: it may quote what a caller sent.
        """
        if self._otel is not None:
            # Imported here: it is there only while tracing is on.
            from opentelemetry.trace import StatusCode  # noqa: PLC0415

            kind = error if isinstance(error, str) else getattr(error, "code", "") or type(error).__name__
            self._otel.set_attribute("error.type", kind)
            self._otel.set_status(StatusCode.ERROR)

    def end(self) -> None:
        """End it now."""
        if self._otel is not None:
            self._otel.end()

    def __enter__(self) -> Self:
        if self._otel is not None:
            self._bound = bind(traceparent=self.traceparent)
            self._bound.__enter__()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._bound is not None:
            with suppress(ValueError):  # a generator may be closed from elsewhere
                self._bound.__exit__()
            if error is not None and not isinstance(error, GeneratorExit):
                self.fail(error)
            self.end()


NO_SPAN = Span()
"""Records nothing."""


def span(
    name: str,
    attributes: Attributes | None = None,
    *,
    kind: Kind = "internal",
    parent: str | None = None,
    links: Iterable[str] = (),
) -> Span:
    """Begin a span, of a name of few different values; use it as a context manager, or end it.

    Attributes that are None are left out. The parent is a trace parent, empty for a new trace; None takes the current
    context's. `links` are trace parents of what else led to it.
    """
    if _recorder is None:
        return NO_SPAN
    first, *others = (context().traceparent if parent is None else parent).split(",")
    begun = Span(_recorder.begin(name, kind, first, (*links, *others), None))
    if attributes:
        begun.set_attributes(attributes)
    return begun


def record_span(name: str, seconds: float, attributes: Attributes | None = None) -> None:
    """Record work of the current context that ended just now; in a batch, for each of its members."""
    if _recorder is None:
        return
    parents = context().traceparent
    end = time.time_ns()
    for parent in parents.split(",") if parents else ():
        done = _recorder.begin(name, "internal", parent, (), end - int(seconds * 1e9))
        done.set_attributes({name: value for name, value in (attributes or {}).items() if value is not None})
        done.end(end)


def find_exemplar() -> dict[str, str] | None:
    """The ids by which a metric's sample names the current span; None where there is none that is kept."""
    if _recorder is None:
        return None
    version, trace, span_id, flags = (context().traceparent.partition(",")[0] or "---").split("-")
    return {"trace_id": trace, "span_id": span_id} if version and int(flags, 16) & 1 else None
