"""Engines that benches compare with: environments of their own, a process that is stopped while it is not asked."""

import sys

import psutil
import pytest

from loadtests.bench.peers.environment import PeerMissing
from loadtests.bench.peers.peer import Peer, choose_setting
from loadtests.bench.peers.process import EngineProcess
from loadtests.bench.suites import longctx_peers
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
        if options.get("dies"):
            raise SystemExit("out of memory")
        time.sleep(options.get("read", 0.02))
        for _ in range(tokens):
            time.sleep(options.get("step", 0.001))
            yield len(prompts)
    return "toy 1.0", generate

serve(load)
"""


@pytest.fixture
def script(tmp_path):
    file = tmp_path / "toy.py"
    file.write_text(TOY.format(loop=str(longctx_peers.PEERS_ROOM / "engines")))
    return file


def stops(process):
    return wait_until(lambda: process.status() == psutil.STATUS_STOPPED, 30, "the pause")


def test_an_engine_says_its_build_and_when_tokens_came(script):
    engine = EngineProcess("toy", sys.executable, script, {}, threads=1)
    try:
        assert engine.build == "toy 1.0"
        found = engine.generate([[1, 2], [3, 4]], 3)
        assert [count for _, _, count in found.marks] == [2, 2, 2]
        assert engine.memory() > 0
        assert stops(psutil.Process(engine._process.pid))
    finally:
        engine.close()
    assert engine.is_over


def test_an_engine_that_dies_is_missing_and_its_last_words_are_told(script):
    with pytest.raises(PeerMissing, match="no such model"):
        EngineProcess("toy", sys.executable, script, {"broken": True}, threads=1)


def test_a_peer_runs_in_its_best_setting_which_its_build_names(script, capsys):
    slow = {"read": 0.3, "step": 0.02}  # less in sum than the best, which decodes much faster
    settings = {"slow": slow, "broken": {"broken": True}, "best": {"read": 1.0}, "dies": {"dies": True}}
    begun = []

    def begin(options):
        begun.append(EngineProcess("toy", sys.executable, script, options, threads=1))
        return begun[-1]

    peer = Peer("toy", "toy", settings=settings)
    chosen = choose_setting(peer, begin, range(8), "wall")
    try:
        assert chosen.build == "toy 1.0, best"
        assert [engine.is_over for engine in begun] == [True, False, True]
    finally:
        chosen.close()
    said = capsys.readouterr().err
    assert "no such model" in said
    assert "out of memory" in said
    lost = Peer("toy", "toy", settings={name: settings[name] for name in ("broken", "dies")})
    with pytest.raises(PeerMissing, match="out of memory"):
        choose_setting(lost, begin, range(8), "wall")
