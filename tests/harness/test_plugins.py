"""The suite's own plug-ins: reruns, phases, reports, and skips, which fail the run unless the list names them."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import Marker

from tests.harness.skips import read_allowed_skips
from tests.report import read_run

FAILS_ONCE = """
import pathlib, pytest
{mark}
def test_one(): lost_in_one_of_two_runs()

def lost_in_one_of_two_runs():
    counter = pathlib.Path(__file__).with_name("runs.txt")
    runs = len(counter.read_text()) if counter.exists() else 0
    counter.write_text("x" * (runs + 1))
    assert runs % 2, "a request was lost"
"""
TIMED = '@pytest.mark.timed("the bell rings at once")'


def test_a_test_that_fails_fails_the_run_and_a_timed_one_the_second_time(run_suite):
    result = run_suite("reruns", test_chaos=FAILS_ONCE.format(mark=""))
    assert (result.ret, result.parseoutcomes()) == (pytest.ExitCode.TESTS_FAILED, {"failed": 1})
    result.stdout.fnmatch_lines(["*a request was lost*"])
    result.stdout.no_fnmatch_line("*timed tests*")
    result = run_suite("reruns", test_chaos=f"import pytest\n{TIMED}\ndef test_one(): assert 0")
    assert (result.ret, result.parseoutcomes()) == (pytest.ExitCode.TESTS_FAILED, {"failed": 1, "rerun": 1})


@pytest.mark.parametrize("workers", [0, 2])
def test_a_timed_test_may_fail_once_and_is_listed(workers, run_suite):
    result = run_suite("reruns", workers=workers, test_bell=FAILS_ONCE.format(mark=TIMED))
    assert (result.ret, result.parseoutcomes()) == (pytest.ExitCode.OK, {"passed": 1, "rerun": 1})
    listed = ["1 tests hold a clock; 1 reruns.", "1 × test_bell.py::test_one: the bell rings at once"]
    result.stdout.fnmatch_lines(["*timed tests*", *listed])


@pytest.mark.parametrize(("mark", "option", "said"), [
    *(
        (f"@pytest.mark.{mark}", "-q", "*test_chaos.py::test_one *Mark it `timed(*")
        for mark in ("timed", "timed()", 'timed("  ")', "timed(3)", "flaky(reruns=3)")
    ),
    ("", "--reruns=1", "*leave out --reruns*"), ("", "--force-reruns=1", "*leave out --reruns*"),
])  # fmt: skip
def test_a_mark_without_a_reason_another_mark_and_reruns_of_all_refuse_the_run(mark, option, said, run_suite):
    result = run_suite("reruns", option, test_chaos=FAILS_ONCE.format(mark=mark))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([said])


FILE = """
import time, pytest
@pytest.fixture(scope="module")
def costly():
    time.sleep(0.2)
    yield
    time.sleep(0.1)
def test_first(costly): pass
def test_second(costly): time.sleep(0.3)
@pytest.mark.e2e
def test_third(): pytest.skip("no tool")
"""


def test_each_phase_has_its_own_seconds(run_suite, tmp_path):
    path = tmp_path / "all.phases"
    run_suite(
        "phases", f"--phases={path}", workers=1, test_one=FILE,
        test_two="import pytest\npytest.skip('no', allow_module_level=True)",
    )  # fmt: skip
    rows = [json.loads(line) for line in path.read_text("utf8").splitlines()]
    seconds = {(row["test"].partition("::")[2], row["phase"]): row["seconds"] for row in rows if row["test"]}
    assert seconds["test_first", "setup"] >= 0.2 > seconds["test_first", "call"]
    assert seconds["test_second", "call"] >= 0.3 > seconds["test_second", "setup"]
    assert seconds["test_third", "teardown"] >= 0.1
    setups = {row["test"].partition("::")[2]: row for row in rows if row["phase"] == "setup"}
    assert list(setups["test_first"]["paid"]) == ["test_one.py::costly"]
    assert 0.2 <= setups["test_first"]["paid"]["test_one.py::costly"] <= seconds["test_first", "setup"]
    assert ["test_one.py::costly" in setups[name].get("uses", ()) for name in setups] == [True, True, False]
    assert [row.get("marks") for row in setups.values()] == [None, None, ["e2e"]]
    assert "paid" not in setups["test_second"]
    skipped = [(row["test"], row["phase"], row["message"]) for row in rows if row["outcome"] == "skipped"]
    assert skipped == [("test_two.py", "collection", "no"), ("test_one.py::test_third", "call", "no tool")]
    assert {row["worker"] for row in rows if "::" in row["test"]} == {"gw0"}
    whole = {row["phase"]: row for row in rows if not row["test"]}
    assert whole["run"]["seconds"] >= 0.6 + whole["collection"]["seconds"]
    assert whole["run"]["outcome"] == "passed"


GOOD = [("setup", "passed"), ("call", "passed"), ("teardown", "passed")]


def rows(test: str, phases: list[tuple[str, str]] = GOOD, seconds: float = 1.0, **more: Any) -> list[dict[str, Any]]:
    return [{"test": test, "phase": phase, "outcome": outcome, "seconds": seconds, **more} for phase, outcome in phases]


ROWS = [
    *rows("", [("collection", "passed")], 21.4, began=1_764_400_000), *rows("a.py::quick", seconds=0.5),
    *rows("a.py::slow", seconds=9.0), *rows("a.py::untidy", [*GOOD[:2], ("teardown", "failed")]),
    *rows("a.py::tool[x|y]", [("setup", "skipped"), ("teardown", "passed")], message="no tool: install it"),
    *rows("b.py", [("collection", "skipped")], message="no tool: install it"),
    *rows("c.py::known", [("setup", "passed"), ("call", "skipped"), ("teardown", "passed")]),
    *rows("c.py::bell", [("setup", "passed"), ("call", "rerun"), *GOOD], timed="a bell rings at once"),
    *rows("", [("run", "failed")], 600.0, began=1_764_400_000),
]  # fmt: skip


def test_a_test_counts_once_by_its_worst_phase():
    run = read_run(ROWS)
    assert run.outcomes == {
        "a.py::quick": "passed", "a.py::slow": "passed", "a.py::untidy": "failed", "a.py::tool[x|y]": "skipped",
        "b.py": "skipped", "c.py::known": "xfailed", "c.py::bell": "passed",
    }  # fmt: skip
    assert (run.seconds, run.collection, run.reruns) == (600, 21.4, {"c.py::bell": 1})


ROOT = Path(__file__).parents[2]
WAYS = {
    "module": "import pytest\npytest.importorskip('no_such_module')\ndef test_a(): pass",
    "condition": "import pytest\n@pytest.mark.skipif(True, reason='no_such_module is missing')\ndef test_a(): pass",
    "fixture": "import pytest\n@pytest.fixture\ndef tool(): pytest.skip('no_such_module')\ndef test_a(tool): pass",
    "call": "import pytest\ndef test_a(): pytest.skip('no_such_module')", "parameter": (
    "import pytest\n@pytest.mark.parametrize('x', "
    "[1, pytest.param(2, marks=pytest.mark.skip(reason='no_such_module'))])\ndef test_a(x): pass" ),
}  # fmt: skip


def allow(pytester: pytest.Pytester, **entry: str) -> str:
    """Write a list with one entry; gives the option that names it."""
    lines = [f"{key} = {value!r}" for key, value in ({"enable": "install it"} | entry).items()]
    return f"--allowed-skips={pytester.makefile('.toml', allowed='[[skip]]' + chr(10) + chr(10).join(lines))}"


@pytest.mark.parametrize(("named", "workers"), [("test_*", 0), ("test_[mc]*", 2)])
def test_a_skip_that_is_not_listed_fails_the_run(named, workers, run_suite, pytester):
    files = {f"test_{way}": text for way, text in WAYS.items()}
    option = allow(pytester, test=named, reason="no_such_module")
    result = run_suite("skips", option, workers=workers, test_two="def test_b(): pass", **files)
    allowed = {way for way in WAYS if named == "test_*" or (named == "test_[mc]*" and way[0] in "mc")}
    assert result.ret == (pytest.ExitCode.OK if allowed == WAYS.keys() else pytest.ExitCode.TESTS_FAILED)
    lines = result.stdout.lines
    assert {way for way in WAYS if any(line.startswith(f"test_{way}.py:") for line in lines)} == WAYS.keys() - allowed
    result.assert_outcomes(skipped=5, passed=2)


@pytest.mark.parametrize(("entry", "expected"), [
    ({"reason": "needs a GPU"}, pytest.ExitCode.TESTS_FAILED),
    ({"reason": "no_such_module", "where": "python_version < '3'"}, pytest.ExitCode.TESTS_FAILED),
    ({"reason": "no_such_module", "where": "python_version > '3'"}, pytest.ExitCode.OK),
])  # fmt: skip
def test_an_entry_holds_for_its_reason_and_where_its_marker_does(entry, expected, run_suite, pytester):
    assert run_suite("skips", allow(pytester, test="*", **entry), test_one=WAYS["call"]).ret == expected


def test_each_entry_of_the_list_is_needed_and_says_how_to_run_the_tests():
    files = subprocess.run(["git", "ls-files", "*tests/*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    texts = {name: (ROOT / name).read_text("utf8") for name in files.stdout.split() if "harness" not in name}
    for entry in read_allowed_skips():
        file, _, name = entry.test.partition("::")
        name = name.partition("(")[0].rstrip("*")
        is_there = any(Path(one).match(file) and f"def {name}" in texts[one] for one in texts)
        assert is_there, f"{entry.test}: no such test"
        assert any(entry.reason in text for text in texts.values()), f"{entry.test}: no test says {entry.reason!r}"
        assert len(entry.reason) > 5, f"{entry.test}: the reason would cover anything"
        assert len(entry.enable) > 10, entry.test
        assert not entry.where or Marker(entry.where)
