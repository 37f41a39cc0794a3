"""The report of a rehearsal says what happened, and an objective that was missed is missed."""

from pathlib import Path

import pytest

from loadtests.rehearsal.report import SLOS, check_slos, summarise
from loadtests.rehearsal.traffic import Call, Record, Sample

KEPT = """
[all]
failed = 0
refused_share = 0.5
gateway_growth_percent = 5
cpu_seconds_per_request = 1

[default]
p50_ms = 1000
p95_ms = 2000

[routes."/v1/detect"]
p50_ms = 10
"""


def record(*statuses: int, growth: float = 1.0) -> Record:
    calls = [Call(n, "/v1/segment", "hospital", status, 0.1 * (n + 1)) for n, status in enumerate(statuses)]
    calls.append(Call(9, "/v1/detect", "newsroom", 200, 0.5))
    memory = ((0, 50), (30, 100), (99, int(100 * growth)))
    samples = [Sample(at, 8, {"seg": 2 - at // 99}, 1.0 + at / 50, size) for at, size in memory]
    return Record(calls, samples, [(50.0, "node killed: begins")])


@pytest.fixture
def slos(tmp_path):
    file = tmp_path / "slos.toml"
    file.write_text(KEPT)
    return file


def missed(found: Record, slos: Path) -> set[str]:
    return {each["objective"] for each in check_slos(summarise(found, 100, 8), slos) if not each["is_kept"]}


def test_figures_are_those_of_the_calls():
    figures = summarise(record(200, 200, 429, 503, 0), 100, 8)
    assert (figures["requests"], figures["failed"], figures["refused"]) == (6, 2, 1)
    assert [failure["status"] for failure in figures["failures"]] == [503, 0]
    assert figures["routes"]["/v1/segment"]["p50_ms"] == 150
    assert figures["cpu_seconds_per_request"] == round(1.98 / 6, 3)
    assert figures["tenants"] == {"hospital": 5, "newsroom": 1}


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (record(200, 200), {"/v1/detect p50_ms"}),
        (record(200, 503), {"failed", "/v1/detect p50_ms"}),
        (record(200, 0), {"failed", "/v1/detect p50_ms"}),
        (record(200, 429, 429, 429), {"refused_share", "/v1/detect p50_ms"}),
        (record(200, 200, growth=1.2), {"gateway_growth_percent", "/v1/detect p50_ms"}),
        (record(*[200] * 20), {"/v1/segment p50_ms", "/v1/detect p50_ms"}),
    ],
)
def test_what_is_missed_is_told(found, wanted, slos):
    assert missed(found, slos) - {"cpu_seconds_per_request"} == wanted


def test_the_objectives_of_the_repository_name_figures_that_there_are():
    assert len(check_slos(summarise(record(200), 100, 8), SLOS)) == 4 + 2 * 3
