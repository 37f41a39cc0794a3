"""The list of slow tests names functions that exist, and leaves out the slowest first."""

from __future__ import annotations

from tests import slow

NAMES = slow.LIST.read_text("utf8").split()


def test_the_list_names_no_function_that_is_gone():
    texts = {file: (slow.ROOT / file).read_text("utf8") for file in {name.partition("::")[0] for name in NAMES}}
    owners = ((name, name.split("::")) for name in NAMES)
    gone = [name for name, (file, function, *more) in owners if not more and f"def {function}(" not in texts[file]]
    assert not gone, "run `python -m tests.slow`"


def test_the_slowest_go_until_the_rest_fits():
    seconds = {"a": 1.0, "b": 2.0, "c": 4.0, "d": 30.0}
    assert slow.list_slow(seconds, budget=7.0) == ["d"]
    assert slow.list_slow(seconds, budget=6.0) == ["c", "d"]
    assert slow.list_slow(seconds, budget=100.0) == []


def test_times_of_parameters_and_of_classes_are_added_up(tmp_path):
    report = tmp_path / "all.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="tests.lint.test_slow" name="test_x[a]" time="1.5"/>'
        '<testcase classname="tests.lint.test_slow" name="test_x[b]" time="2"/>'
        '<testcase classname="tests.lint.test_slow.TestY" name="test_z" time="3"/></testsuite></testsuites>'
    )
    found = slow.read_durations(report)
    assert found == {"tests/lint/test_slow.py::test_x": 3.5, "tests/lint/test_slow.py::TestY::test_z": 3.0}
