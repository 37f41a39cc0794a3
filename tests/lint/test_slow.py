"""The list of slow tests names what exists, and leaves out the most expensive first."""

import ast
from functools import cache
from typing import Any

import pytest

from tests import slow


def row(test: str, seconds: float, phase: str = "call", **more: Any) -> dict[str, Any]:
    return {"test": test, "phase": phase, "seconds": seconds, "outcome": "passed", **more}


@cache
def functions(file: str) -> set[str]:
    body = ast.parse((slow.ROOT / file).read_text("utf8")).body
    classes = [(f"{one.name}::", one.body) for one in body if isinstance(one, ast.ClassDef)]
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    machines = {f"{target.id}::runTest" for one in body if isinstance(one, ast.Assign) for target in one.targets
                if isinstance(target, ast.Name)}  # fmt: skip  # hypothesis's TestCase of a state machine
    return machines | {
        owner + one.name for owner, inner in [("", body), *classes] for one in inner if isinstance(one, kinds)
    }


def test_the_list_names_no_function_and_no_file_that_is_gone():
    gone = []
    for name in slow.LIST.read_text("utf8").split():
        file, _, function = name.partition("::")
        if not (slow.ROOT / file).is_file() or (function and function not in functions(file)):
            gone.append(name)
    assert not gone, "run `make test ARGS=--phases=all.phases`, then `python -m tests.slow all.phases`"


def test_a_file_with_an_expensive_fixture_is_left_out_as_a_whole():
    fixture = {"uses": ["a.py::model"]}
    rows = [
        row("a.py::first", 20.1, "setup", paid={"a.py::model": 20.0}, **fixture), row("a.py::first", 0.1),
        row("a.py::second", 0.1, "setup", **fixture), row("a.py::second", 0.1),
        row("b.py::third", 3), row("b.py::fourth", 4),
    ]  # fmt: skip
    costs = slow.read_costs(rows)
    assert costs.own == pytest.approx({"a.py::first": 0.2, "a.py::second": 0.2, "b.py::third": 3, "b.py::fourth": 4})
    assert slow.list_slow(costs, budget=15) == ["a.py"]
    assert slow.list_slow(costs, budget=27) == ["a.py"]
    assert slow.list_slow(costs, budget=28) == []


@pytest.mark.parametrize(("expression", "expected"), [("not slow and not e2e", True), ("", None), ("not e2e", None)])
def test_the_quick_suite_does_not_import_files_that_are_left_out(expression, expected, pytestconfig, monkeypatch):
    root: Any = pytestconfig.pluginmanager.get_plugin(str(slow.ROOT / "conftest.py"))
    monkeypatch.setattr(root, "SLOW", frozenset({"tests/slow.py", "tests/report.py::main"}))
    monkeypatch.setattr(pytestconfig.option, "markexpr", expression)
    assert root.pytest_ignore_collect(slow.ROOT / "tests/slow.py", pytestconfig) is expected
    assert root.pytest_ignore_collect(slow.ROOT / "tests/report.py", pytestconfig) is None
    assert root.pytest_ignore_collect(slow.ROOT.parent / "tests/slow.py", pytestconfig) is None
