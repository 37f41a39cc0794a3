"""Every log line and metric of a request carries its id, service and model; traces survive the hop."""

import json
import logging

import pytest

from shared import telemetry


def test_incoming_trace_is_continued_with_a_span_of_ours():
    sent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    passed = telemetry.traceparent(sent)
    assert passed.split("-")[1] == sent.split("-")[1]
    assert passed.split("-")[2] != sent.split("-")[2]


@pytest.mark.parametrize(
    "bad", [None, "", "xx", "00-zz-1-01", "00-" + "0" * 32 + "-00f067aa0ba902b7-01", "ff-" + "1" * 32 + "-1"]
)
def test_broken_trace_is_replaced(bad):
    version, trace, span, flags = telemetry.traceparent(bad).split("-")
    assert (version, len(trace), len(span), flags) == ("00", 32, 16, "01")


def test_hostile_request_id_is_replaced():
    made = telemetry.fresh_context("a\nb", None, "medical-seg")
    assert "\n" not in made.request_id
    assert telemetry.fresh_context("mine-1", None, "medical-seg").request_id == "mine-1"


def test_context_is_bound_for_a_block_only():
    with telemetry.bind(service="medical-seg", model="pranet"):
        assert telemetry.context().model == "pranet"
    assert telemetry.context().model == ""


def test_stage_lands_in_the_histogram_of_service_and_model():
    with telemetry.bind(service="s", model="m"), telemetry.stage("pre"):
        pass
    text = telemetry.render_metrics()[0].decode()
    assert 'fovea_stage_seconds_count{model="m",service="s",stage="pre"} 1.0' in text


def test_json_log_line_carries_the_context(capsys):
    telemetry.configure_logs("INFO", "json")
    with telemetry.bind(request_id="r1", service="s", model="m"):
        telemetry.log().info("served", ms=3)
    line = json.loads(capsys.readouterr().err.strip().splitlines()[-1])
    assert (line["request_id"], line["service"], line["model"], line["event"], line["ms"]) == (
        "r1", "s", "m", "served", 3,
    )  # fmt: skip
    logging.getLogger().handlers.clear()
