"""Only tests marked `timed`, with a reason, may fail once; the report lists each rerun."""

import pytest

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
EACH = pytest.mark.parametrize("workers", [0, 2])


@EACH
def test_a_request_that_is_lost_in_one_of_two_runs_fails_the_run(workers, run_suite):
    result = run_suite("reruns", workers=workers, test_chaos=FAILS_ONCE.format(mark=""))
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*a request was lost*"])
    result.stdout.no_fnmatch_line("*timed tests*")


@EACH
def test_a_timed_test_may_fail_once_and_is_listed(workers, run_suite):
    result = run_suite("reruns", workers=workers, test_bell=FAILS_ONCE.format(mark=TIMED))
    assert result.ret == pytest.ExitCode.OK
    assert result.parseoutcomes() == {"passed": 1, "rerun": 1}
    listed = ["1 tests hold a clock; 1 reruns.", "1 × test_bell.py::test_one: the bell rings at once"]
    result.stdout.fnmatch_lines(["*timed tests*", *listed])


def test_a_timed_test_may_not_fail_twice(run_suite):
    result = run_suite("reruns", test_bell=f"import pytest\n{TIMED}\ndef test_one(): assert 0")
    assert (result.ret, result.parseoutcomes()) == (pytest.ExitCode.TESTS_FAILED, {"failed": 1, "rerun": 1})


@EACH
def test_a_mark_without_a_reason_refuses_the_run(workers, run_suite):
    marks = ["timed", "timed()", 'timed("")', 'timed("  ")', "timed(3)"]
    files = {f"test_{i}": f"import pytest\n@pytest.mark.{mark}\ndef test_one(): pass" for i, mark in enumerate(marks)}
    result = run_suite("reruns", workers=workers, test_good="def test_two(): pass", **files)
    assert result.ret != pytest.ExitCode.OK
    assert result.parseoutcomes()["errors"] == 5
    for name in files:
        result.stdout.fnmatch_lines([f"{name}.py::test_one gives no reason. Mark it `timed(*"])


def test_reruns_by_another_mark_are_refused(run_suite):
    result = run_suite("reruns", test_chaos=FAILS_ONCE.format(mark="@pytest.mark.flaky(reruns=3)"))
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["test_chaos.py::test_one is marked `flaky`. Mark it `timed(*"])


@pytest.mark.parametrize("option", ["--reruns=1", "--force-reruns=1"])
def test_reruns_of_all_tests_are_refused(option, run_suite):
    result = run_suite("reruns", option, test_chaos=FAILS_ONCE.format(mark=""))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*leave out --reruns*"])
