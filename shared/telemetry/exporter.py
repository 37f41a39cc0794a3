"""OpenTelemetry's SDK: makes spans and sends them over OTLP/HTTP in the background.

Imported only when tracing is on. The SDK reads its own standard variables: `OTEL_TRACES_SAMPLER`,
`OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_BSP_*` and so on.
"""

import os
import socket
import threading
from collections.abc import Iterable, Sequence
from importlib import metadata
from typing import Any

from opentelemetry import trace as otel
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler, SamplingResult
from opentelemetry.util.types import Attributes as OtelAttributes

from shared.telemetry.context import is_traceparent

_KINDS = {kind.name.lower(): kind for kind in otel.SpanKind}


class SpanRecorder:
    """Makes spans with a provider of its own: the global one stays free for libraries that bring theirs."""

    def __init__(self, service: str, to: SpanExporter | str) -> None:
        """Send the spans of `service` to an OTLP/HTTP endpoint in batches, or hand each to an exporter at its end."""
        self._provider = TracerProvider(resource=_describe_process(service), shutdown_on_exit=False)
        self._provider.sampler = _FollowLink(self._provider.sampler)
        self._exporter = OTLPSpanExporter(to) if isinstance(to, str) else to
        processor = BatchSpanProcessor if isinstance(to, str) else SimpleSpanProcessor
        self._provider.add_span_processor(processor(self._exporter))
        self._tracer = self._provider.get_tracer("fovea", metadata.version("fovea-platform"))

    def begin(self, name: str, kind: str, parent: str, links: Iterable[str], started_ns: int | None) -> Any:
        """Begin a span of OpenTelemetry's; `parent` and `links` are trace parents, an empty parent begins a trace."""
        found = _read(parent)
        context = Context() if found is None else otel.set_span_in_context(otel.NonRecordingSpan(found), Context())
        linked = [otel.Link(other) for other in map(_read, links) if other is not None]
        return self._tracer.start_span(name, context, _KINDS[kind], links=linked, start_time=started_ns)

    def shut_down(self, seconds: float) -> None:
        """Send what is left, for at most `seconds`: an endpoint that does not answer must not hold up a process."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(seconds)
        if closing.is_alive():  # it tries again and again: make it give up
            self._exporter.shutdown()
            closing.join(seconds)


class _FollowLink(Sampler):
    """Keeps a trace that begins with a link if the linked one is kept: a job is seen if its request is."""

    def __init__(self, other: Sampler) -> None:
        self._other = other

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: otel.SpanKind | None = None,
        attributes: OtelAttributes = None,
        links: Sequence[otel.Link] | None = None,
        trace_state: otel.TraceState | None = None,
    ) -> SamplingResult:
        sampler = self._other
        if links and not otel.get_current_span(parent_context).get_span_context().is_valid:
            sampler = ALWAYS_ON if links[0].context.trace_flags.sampled else ALWAYS_OFF
        return sampler.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        return f"FollowLink({self._other.get_description()})"


def _describe_process(service: str) -> Resource:
    version, instance = metadata.version("fovea-platform"), f"{socket.gethostname()}:{os.getpid()}"
    described = {"name": service, "namespace": "fovea", "version": version, "instance.id": instance}
    return Resource.create({f"service.{key}": value for key, value in described.items()} | {"process.pid": os.getpid()})


def _read(traceparent: str) -> otel.SpanContext | None:
    if not is_traceparent(traceparent):
        return None
    _, trace, span, flags = traceparent.strip().split("-")
    return otel.SpanContext(int(trace, 16), int(span, 16), is_remote=True, trace_flags=otel.TraceFlags(int(flags, 16)))
