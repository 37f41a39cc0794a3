"""Spans of a test, as OpenTelemetry's in-memory exporter keeps them."""

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from shared.telemetry.exporter import SpanRecorder
from shared.telemetry.spans import use_recorder


class RecordedSpans:
    def __init__(self, exporter):
        self._exporter = exporter

    def all(self):
        return self._exporter.get_finished_spans()

    def named(self, name):
        return [one for one in self.all() if one.name == name]

    def one(self, name):
        found = self.named(name)
        assert len(found) == 1, (name, [one.name for one in self.all()])
        return found[0]


def is_child(span, parent):
    same_trace = span.context.trace_id == parent.context.trace_id
    return same_trace and span.parent is not None and span.parent.span_id == parent.context.span_id


@pytest.fixture
def recorded_spans():
    exporter = InMemorySpanExporter()
    use_recorder(SpanRecorder("test", exporter))
    yield RecordedSpans(exporter)
    use_recorder(None)
