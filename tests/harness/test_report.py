"""The page about a run says what its tests did, what was left out and how to run it, and what was run again."""

from typing import Any

from tests.harness.skips import AllowedSkip
from tests.report import read_run, render

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
ALLOWED = [AllowedSkip("a.py::*", "no tool", "apt-get install tool")]


def test_a_test_counts_once_by_its_worst_phase():
    run = read_run(ROWS)
    assert run.outcomes == {
        "a.py::quick": "passed", "a.py::slow": "passed", "a.py::untidy": "failed", "a.py::tool[x|y]": "skipped",
        "b.py": "skipped", "c.py::known": "xfailed", "c.py::bell": "passed",
    }  # fmt: skip
    assert (run.seconds, run.collection, run.reruns) == (600, 21.4, {"c.py::bell": 1})


def test_the_page_says_what_was_left_out_and_how_to_run_it():
    page = render(read_run(ROWS), "abc123-dirty", [], ALLOWED)
    assert "| date | 2025-11-29 07:06 UTC |\n| commit | `abc123-dirty` |\n| duration | 10.0 minutes |" in page
    assert "| passed | 3 |\n| failed | 1 |\n| skipped | 2 |\n| expected failures | 1 |\n| reruns | 1 |" in page
    assert "| 1 | `a.py` | no tool: install it | apt-get install tool |" in page
    assert "| 1 | `b.py` | no tool: install it | Not in tests/skips.toml |" in page
    assert "| `c.py::bell` | 1 | a bell rings at once |" in page
    assert "## Failed\n\n| test |\n|---|\n| `a.py::untidy` |" in page
    assert page.index("`a.py::slow` | 9.0 | 18.0") < page.index("`a.py::quick` | 0.5 | 1.0")
    assert page.endswith("## Fuzzing\n\nNone.\n")


def test_what_fuzzing_found_is_on_the_page():
    fuzzed = [{"name": "dicom", "inputs": 12345, "seconds": 25.2, "found": "dicom-0f"}]
    assert "| dicom | 12,345 | 25 | dicom-0f |" in render(read_run(ROWS), "abc123", fuzzed, [])
