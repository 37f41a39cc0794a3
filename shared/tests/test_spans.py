"""Log lines, metrics and spans of a request: its id, its trace, its sampler, and no cost while tracing is off."""

import json
import logging
import subprocess
import sys
import time

import httpx2
import pytest
from structlog.testing import capture_logs

from fovea.errors import NotFound
from shared import telemetry
from shared.settings import Settings
from shared.tests.recorded_spans import is_child, recorded_spans  # noqa: F401  # a fixture

PARENT = f"00-{'a' * 32}-{'b' * 16}-01"


def test_spans_nest_by_the_context(recorded_spans):  # noqa: F811
    with telemetry.span("outer", {"x": 1, "left out": None}, kind="server", parent=PARENT), telemetry.span("inner"):
        telemetry.record_span("timed elsewhere", 0.5)
    outer, inner, timed = (recorded_spans.one(name) for name in ("outer", "inner", "timed elsewhere"))
    assert (f"{outer.context.trace_id:032x}", f"{outer.parent.span_id:016x}") == ("a" * 32, "b" * 16)
    assert is_child(inner, outer)
    assert is_child(timed, inner)
    assert timed.end_time - timed.start_time == pytest.approx(5e8)
    assert dict(outer.attributes) == {"x": 1}
    assert telemetry.context().traceparent == ""


def test_a_stage_is_in_the_traces_of_all_members_and_an_error_of_ours_fails_its_span_by_its_code(recorded_spans):  # noqa: F811
    members = [telemetry.span("member", parent="") for _ in range(3)]
    with telemetry.bind(traceparent=",".join(one.traceparent for one in members)), telemetry.stage("run"):
        pass
    assert len({one.context.trace_id for one in recorded_spans.named("inference")}) == 3
    with pytest.raises(NotFound), telemetry.span("look"):
        raise NotFound("There is none.")
    span = recorded_spans.one("look")
    assert (span.status.status_code.name, span.attributes["error.type"]) == ("ERROR", "not_found")


@pytest.mark.parametrize("flags", ["00", "01"])
def test_a_callers_decision_holds_for_the_whole_trace_and_for_jobs_linked_to_it(recorded_spans, flags):  # noqa: F811
    with telemetry.span("request", kind="server", parent=PARENT[:-2] + flags) as request:
        assert request.traceparent.endswith(flags)
        with telemetry.span("job", kind="consumer", parent="", links=[request.traceparent]) as job:
            assert job.traceparent.split("-")[1] != "a" * 32
    kept = ["job", "request"] if flags == "01" else []
    assert [one.name for one in recorded_spans.all()] == kept
    if kept:
        assert f"{recorded_spans.one('job').links[0].context.trace_id:032x}" == "a" * 32


def test_histograms_are_of_what_is_bound_for_a_block_and_name_the_trace_of_a_sample(recorded_spans):  # noqa: F811
    with telemetry.span("exemplary", parent="") as span, telemetry.bind(service="s", model="exemplary"):
        telemetry.observe_stage("run", 0.02)
    text, kind = telemetry.render_metrics("application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    line = next(one for one in text.decode().splitlines() if 'le="0.025",model="exemplary"' in one)
    assert kind.startswith("application/openmetrics-text")
    _, trace, span_id, _ = span.traceparent.split("-")
    assert f'# {{span_id="{span_id}",trace_id="{trace}"}} 0.02' in line or f'trace_id="{trace}"' in line
    plain, kind = telemetry.render_metrics("text/plain")
    assert kind.startswith("text/plain")
    assert trace.encode() not in plain
    with telemetry.bind(service="s", model="m"), telemetry.stage("pre"):
        assert telemetry.context().model == "m"
    assert telemetry.context().model == ""
    assert 'fovea_stage_seconds_count{model="m",service="s",stage="pre"} 1.0' in telemetry.render_metrics()[0].decode()


def test_off_it_makes_no_span_and_costs_less_than_two_microseconds():
    assert not telemetry.is_tracing()
    assert telemetry.find_exemplar() is None
    with telemetry.span("nothing", {"a": 1}, parent=PARENT) as span:
        assert (span.traceparent, telemetry.context().traceparent) == ("", "")

    def time_one():
        begun = time.thread_time()
        for _ in range(2000):
            with telemetry.span("nothing"):
                pass
        return (time.thread_time() - begun) / 2000

    assert min(time_one() for _ in range(5)) < 2e-6


def test_off_nothing_imports_the_sdk_of_traces():
    # Redis's client imports that of metrics wherever it is installed.
    code = """
import sys
from services.gateway.app import build_gateway
from shared.serving import worker
from shared.settings import Settings
from shared.telemetry import configure_tracing
config = Settings(redis_url=None, otlp_endpoint=None)
build_gateway(config)
configure_tracing(config.traces_endpoint, "x")
found = ("shared.telemetry.exporter", "opentelemetry.sdk.trace", "opentelemetry.exporter")
print([name for name in sys.modules if name.startswith(found)])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_endpoint_is_opentelemetrys_own_variable(monkeypatch):
    assert Settings().traces_endpoint is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "")  # as Compose sets what is left out
    assert Settings().traces_endpoint is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/")
    assert Settings().traces_endpoint == "http://collector:4318/v1/traces"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://collector:4318/mine")
    assert Settings().traces_endpoint == "http://collector:4318/mine"
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert Settings().traces_endpoint is None


@pytest.mark.timed("A span that waits for its export differs from one that does not by its duration alone.")
def test_an_endpoint_that_does_not_answer_holds_nobody_up():
    telemetry.configure_tracing("http://127.0.0.1:9/v1/traces", "test")
    begun = time.monotonic()
    with telemetry.span("lost", parent=""):
        pass
    assert time.monotonic() - begun < 0.5
    telemetry.shut_down_tracing(0.5)
    assert time.monotonic() - begun < 3
    assert not telemetry.is_tracing()


def test_broken_trace_is_replaced_and_another_continued_with_a_span_of_ours():
    broken = ("00-" + "0" * 32 + "-00f067aa0ba902b7-01", "ff-" + "1" * 32 + "-1")
    for bad in (None, "", "xx", "00-zz-1-01", *broken):
        version, trace, span, flags = telemetry.traceparent(bad).split("-")
        assert (version, len(trace), len(span), flags) == ("00", 32, 16, "01"), bad
    _, trace, span, _ = telemetry.traceparent(PARENT).split("-")
    assert (trace, span == "b" * 16) == ("a" * 32, False)


def test_json_log_line_carries_the_context_trace_and_span(recorded_spans, capsys):  # noqa: F811
    telemetry.configure_logs("INFO", "json")
    with telemetry.bind(request_id="r1", service="s", model="m"), telemetry.span("logged", parent="") as span:
        telemetry.log().info("served", ms=3)
    line = json.loads(capsys.readouterr().err.strip().splitlines()[-1])
    told = {"request_id": "r1", "service": "s", "model": "m", "event": "served", "ms": 3}
    assert line.items() >= told.items()
    assert span.traceparent.split("-")[2] in str(line)
    with httpx2.Client(transport=httpx2.MockTransport(lambda _: httpx2.Response(200))) as client:
        client.get("http://bucket/p.png?signature=s3cret")
    assert "s3cret" not in capsys.readouterr().err
    kept = telemetry.log()
    kept.info("used once, and kept by structlog")
    telemetry.configure_logs("INFO", "console")
    with capture_logs() as lines:
        kept.info("heard")
    assert [one["event"] for one in lines] == ["heard"]
    logging.getLogger().handlers.clear()


@pytest.mark.parametrize("form", ["console", "json"])
@pytest.mark.parametrize("get_logger", [logging.getLogger, telemetry.log])
def test_a_text_of_a_caller_forges_no_line_of_the_log(form, get_logger, capsys):
    telemetry.configure_logs("INFO", form)
    get_logger("uvicorn").warning("no such file: /a\n2026-01-01 [info] forged\x1b[2K")
    assert r"/a\n2026" in (told := capsys.readouterr().err)
    assert (told.count("\n"), "\x1b" in told) == (1, False)
    logging.getLogger().handlers.clear()
