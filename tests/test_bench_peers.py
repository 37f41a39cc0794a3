"""Engines that benches compare with: environments of their own, a process that is stopped while it is not asked."""

import sys
import time

import psutil
import pytest

from loadtests.bench.peers import environment
from loadtests.bench.peers.environment import PeerMissing, prepare_environment
from loadtests.bench.peers.process import EngineProcess, Generation
from loadtests.bench.suites import longctx_peers

TOY = """
import sys
sys.path.insert(0, {loop!r})
from answer_loop import serve

def load(options):
    print("loading", options["threads"])
    if options.get("broken"):
        raise SystemExit("no such model")
    def generate(prompts, tokens, method):
        yield 0
        for _ in range(tokens):
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
    until = time.monotonic() + 30
    while process.status() != psutil.STATUS_STOPPED and time.monotonic() < until:
        time.sleep(0.01)
    return process.status() == psutil.STATUS_STOPPED


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


def test_marks_become_first_token_pace_and_rate():
    found = Generation([(2.0, 1.0, 1), (3.0, 1.5, 1), (7.0, 3.5, 2)])
    assert (found.first(0), found.first(1)) == (2.0, 1.0)
    assert found.per_token(1) in {0.5, 1.0}
    assert found.rate(0) == pytest.approx(4 / 7)


def test_what_is_built_needs_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setattr(environment.shutil, "which", lambda _name: None)
    (tmp_path / "r.txt").write_text("toy\n")
    with pytest.raises(PeerMissing, match="no C\\+\\+ compiler"):
        prepare_environment("toy", tmp_path / "r.txt", tmp_path, build={"CMAKE_ARGS": "-DNATIVE=ON"})


def test_an_environment_is_made_once(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(environment.venv, "create", lambda place, **_more: made.append(place))
    monkeypatch.setattr(environment.subprocess, "run", lambda *_a, **_k: environment.subprocess.CompletedProcess([], 0))
    (tmp_path / "r.txt").write_text("toy\n")
    (tmp_path / "toy/bin").mkdir(parents=True)
    (tmp_path / "toy/bin/python").touch()
    for _ in range(2):
        assert prepare_environment("toy", tmp_path / "r.txt", tmp_path) == tmp_path / "toy/bin/python"
    assert len(made) == 1
    (tmp_path / "r.txt").write_text("toy==2\n")
    prepare_environment("toy", tmp_path / "r.txt", tmp_path)
    assert len(made) == 2


def test_the_table_compares_with_ours_and_names_each_build_once():
    taken = {
        "ours, q4, first token at 1024": [1.0], "llama.cpp, Q4_1, first token at 1024": [3.0, 2.0],
        "ours, q4, decode at 128": [5.0], "llama.cpp, Q4_1, decode at 128": [10.0], "ours, q4, 8 at once": [240.0],
        "llama.cpp, Q4_1, 8 at once": [100.0],
    }  # fmt: skip
    made = longctx_peers.table(taken, {"llama.cpp, Q4_1": "native"}, longctx_peers.Extent(), 7500)
    ratios = {row.name: row.ratio for row in made.rows}
    assert ratios["llama.cpp, Q4_1, first token at 1024"] == 2.5
    assert [row.note for row in made.rows].count("native") == 1
    assert made.targets["decode at 128, times llama.cpp"] == (2.0, 1.0)
    assert made.targets["first token at 1024, times the best peer"] == (2.5, 1.0)
    assert made.targets["8 at once, times the best peer"] == (2.4, 1.2)
