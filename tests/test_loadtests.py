"""Tools of `loadtests`: engines of peers that are stopped while they are not asked, and reports of rehearsals."""

import sys

import psutil
import pytest

from loadtests.bench.peers.environment import PeerMissing
from loadtests.bench.peers.process import EngineProcess
from loadtests.bench.suites import longctx_peers
from loadtests.rehearsal.report import SLOS, check_slos, summarise
from loadtests.rehearsal.traffic import Call, Record, Sample
from tests.harness.waiting import wait_until

TOY = """
import sys
import time
sys.path.insert(0, {loop!r})
from answer_loop import serve

def load(options):
    print("loading", options["threads"])
    if options.get("broken"):
        raise SystemExit("no such model")
    def generate(prompts, tokens, method):
        yield 0
        for _ in range(tokens):
            time.sleep(0.001)
            yield len(prompts)
    return "toy 1.0", generate

serve(load)
"""


@pytest.fixture
def script(tmp_path):
    file = tmp_path / "toy.py"
    file.write_text(TOY.format(loop=str(longctx_peers.PEERS_ROOM / "engines")))
    return file


def test_an_engine_says_its_build_and_when_tokens_came(script):
    engine = EngineProcess("toy", sys.executable, script, {}, threads=1)
    try:
        assert engine.build == "toy 1.0"
        assert [count for _, _, count in engine.generate([[1, 2], [3, 4]], 3).marks] == [2, 2, 2]
        assert engine.memory() > 0
        process = psutil.Process(engine._process.pid)
        wait_until(lambda: process.status() == psutil.STATUS_STOPPED, 30, "the pause")
    finally:
        engine.close()
    assert engine.is_over


def test_an_engine_that_dies_is_missing_and_its_last_words_are_told(script):
    with pytest.raises(PeerMissing, match="no such model"):
        EngineProcess("toy", sys.executable, script, {"broken": True}, threads=1)


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
    (tmp_path / "slos.toml").write_text(KEPT)
    return tmp_path / "slos.toml"


def test_figures_are_those_of_the_calls():
    figures = summarise(record(200, 200, 429, 503, 0), 100, 8)
    assert (figures["requests"], figures["failed"], figures["refused"]) == (6, 2, 1)
    assert [failure["status"] for failure in figures["failures"]] == [503, 0]
    assert figures["routes"]["/v1/segment"]["p50_ms"] == 150
    assert figures["cpu_seconds_per_request"] == round(1.98 / 6, 3)
    assert figures["tenants"] == {"hospital": 5, "newsroom": 1}


@pytest.mark.parametrize(("found", "wanted"), [
    (record(200, 200), set()), (record(200, 503), {"failed"}), (record(200, 0), {"failed"}),
    (record(200, 429, 429, 429), {"refused_share"}), (record(200, 200, growth=1.2), {"gateway_growth_percent"}),
    (record(*[200] * 20), {"/v1/segment p50_ms"}),
])  # fmt: skip
def test_what_is_missed_is_told(found, wanted, slos):
    missed = {each["objective"] for each in check_slos(summarise(found, 100, 8), slos) if not each["is_kept"]}
    assert missed - {"cpu_seconds_per_request"} == wanted | {"/v1/detect p50_ms"}


def test_the_objectives_of_the_repository_name_figures_that_there_are():
    assert len(check_slos(summarise(record(200), 100, 8), SLOS)) == 4 + 2 * 3
