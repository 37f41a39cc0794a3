"""The page about a run says what its tests did, what was left out and how to run it, and what was run again."""

from typing import Any

from tests.report import read_run

GOOD = [("setup", "passed"), ("call", "passed"), ("teardown", "passed")]


def rows(test: str, phases: list[tuple[str, str]] = GOOD, seconds: float = 1.0, **more: Any) -> list[dict[str, Any]]:
    return [{"test": test, "phase": phase, "outcome": outcome, "seconds": seconds, **more} for phase, outcome in phases]


ROWS = [
    *rows("", [("collection", "passed")], 21.4, began=1_764_400_000),
    *rows("a.py::quick", seconds=0.5),
    *rows("a.py::slow", seconds=9.0),
    *rows("a.py::untidy", [*GOOD[:2], ("teardown", "failed")]),
    *rows("a.py::tool[x|y]", [("setup", "skipped"), ("teardown", "passed")], message="no tool: install it"),
    *rows("b.py", [("collection", "skipped")], message="no tool: install it"),
    *rows("c.py::known", [("setup", "passed"), ("call", "skipped"), ("teardown", "passed")]),
    *rows("c.py::bell", [("setup", "passed"), ("call", "rerun"), *GOOD], timed="a bell rings at once"),
    *rows("", [("run", "failed")], 600.0, began=1_764_400_000),
]


def test_a_test_counts_once_by_its_worst_phase():
    run = read_run(ROWS)
    assert run.outcomes == {
        "a.py::quick": "passed", "a.py::slow": "passed", "a.py::untidy": "failed", "a.py::tool[x|y]": "skipped",
        "b.py": "skipped", "c.py::known": "xfailed", "c.py::bell": "passed",
    }  # fmt: skip
    assert (run.seconds, run.collection, run.reruns) == (600, 21.4, {"c.py::bell": 1})
