"""Seconds of fixtures, tests and tidying up are written apart, and so is what became of a test."""

import json
from pathlib import Path
from typing import Any

import pytest

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


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf8").splitlines()]


@pytest.mark.parametrize("workers", [0, 1])
def test_each_phase_has_its_own_seconds(workers, run_suite, tmp_path):
    path = tmp_path / "all.phases"
    run_suite(
        "phases",
        f"--phases={path}",
        workers=workers,
        test_one=FILE,
        test_two="import pytest\npytest.skip('no', allow_module_level=True)",
    )
    rows = read(path)
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
    assert {row["worker"] for row in rows if "::" in row["test"]} == {"gw0" if workers else "master"}
    whole = {row["phase"]: row for row in rows if not row["test"]}
    assert whole["run"]["seconds"] >= 0.6 + whole["collection"]["seconds"]
    assert whole["run"]["outcome"] == "passed"
