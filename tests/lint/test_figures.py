"""Pages take figures by key, benchmarks know when they are stale, and the list of slow tests is right."""

import ast
from functools import cache
from typing import Any

import pytest

from loadtests.bench import freshness
from tests import drift, figures, slow


def test_a_metric_comes_from_the_manifest_and_a_colon_is_no_format():
    manifest = figures.manifests()["yolo9tr"]
    low, high = manifest.intervals["map50"]
    assert figures.look_up("yolo9tr.map50") == f"{manifest.metrics['map50']:.2f}"
    assert figures.look_up("yolo9tr.map50:.3f") == f"{manifest.metrics['map50']:.3f}"
    assert figures.look_up("yolo9tr.map50:interval") == f"{low:.2f} to {high:.2f}"
    key = "bench/longctx_dense/targets/prefill fp32: transformers, times ours (at least)"
    assert figures.look_up(f"{key}:.1f") == f"{float(figures.look_up(key)):.1f}"


def test_a_row_of_several_units_is_named_and_a_stale_figure_replaced():
    units = ("CPU ms / request", "requests / s")
    cost, rate = (figures._benchmark("serving", "rows", f"Fovea service, {unit}") for unit in units)
    assert cost < rate
    page, now = "a <!--=patnet.top_1:.3f-->{}<!--/--> b\n", figures.look_up("patnet.top_1:.3f")
    assert figures.fill_in(page.format("0.999"), "page.md") == page.format(now)


@pytest.mark.parametrize("key", ["nobody.map50", "patnet.map99", "bench/none/targets/x", "bench/serving/targets/x"])
def test_an_unknown_figure_says_what_is_available(key):
    with pytest.raises(figures.UnknownFigure, match=r"page\.md asks for .*Available: "):
        figures.fill_in(f"<!--={key}--><!--/-->", "page.md")


def test_a_figure_copied_by_hand_is_found(monkeypatch, tmp_path):
    page = tmp_path / "page.md"
    figure = figures.look_up("patnet.top_1:.3f")
    page.write_text(f"PATNet has {figure}.\nPATNet <!--=patnet.top_1:.3f-->{figure}<!--/-->.\nThis has {figure}.\n")
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    assert [line.partition(" copies")[0] for line in figures.copied_by_hand()] == ["page.md:1"]


def test_a_result_is_stale_once_its_weights_or_code_change_not_its_docstrings():
    now = {"suite": "sparsity_partial", "measures": freshness.identify("sparsity_partial")}
    assert freshness.explain_staleness(now) == ""
    assert "code has changed" in freshness.explain_staleness({**now, "measures": {**now["measures"], "code": "other"}})
    other = {**now["measures"], "weights": {**now["measures"]["weights"], "patnet": "other"}}
    assert "weights of patnet" in freshness.explain_staleness({**now, "measures": other})
    assert "before results recorded" in freshness.explain_staleness({"suite": "sparsity_partial"})
    assert freshness.dump_code('"""One."""\nx = 1\n') == freshness.dump_code('"""Two."""\n# three\nx = 1\n')
    assert freshness.dump_code("import a\nx = 1\n") == freshness.dump_code("from b import a\nx = 1\n")
    assert freshness.dump_code("x = 1\n") != freshness.dump_code("x = 2\n")


def test_claims_of_other_weights_are_outdated(monkeypatch):
    monkeypatch.setattr(drift, "explain_staleness", lambda table: f"the weights of {table['suite']} have changed since")
    assert len(list(drift.outdated_claims())) == len(drift.CLAIMS)


def row(test: str, seconds: float, phase: str = "call", **more: Any) -> dict[str, Any]:
    return {"test": test, "phase": phase, "seconds": seconds, "outcome": "passed", **more}


@cache
def functions(file: str) -> set[str]:
    body = ast.parse((slow.ROOT / file).read_text("utf8")).body
    classes = [(f"{one.name}::", one.body) for one in body if isinstance(one, ast.ClassDef)]
    kinds, targets = (ast.FunctionDef, ast.AsyncFunctionDef), [t for one in body for t in getattr(one, "targets", ())]
    machines = {f"{one.id}::runTest" for one in targets if isinstance(one, ast.Name)}  # hypothesis's, of states
    parts = [("", body), *classes]
    return machines | {owner + one.name for owner, inner in parts for one in inner if isinstance(one, kinds)}


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
    assert (slow.list_slow(costs, budget=15), slow.list_slow(costs, budget=28)) == (["a.py"], [])


@pytest.mark.parametrize(("expression", "expected"), [("not slow and not e2e", True), ("", None), ("not e2e", None)])
def test_the_quick_suite_does_not_import_files_that_are_left_out(expression, expected, pytestconfig, monkeypatch):
    root: Any = pytestconfig.pluginmanager.get_plugin(str(slow.ROOT / "conftest.py"))
    monkeypatch.setattr(root, "SLOW", frozenset({"tests/slow.py", "tests/report.py::main"}))
    monkeypatch.setattr(pytestconfig.option, "markexpr", expression)
    assert root.pytest_ignore_collect(slow.ROOT / "tests/slow.py", pytestconfig) is expected
    assert root.pytest_ignore_collect(slow.ROOT / "tests/report.py", pytestconfig) is None
    assert root.pytest_ignore_collect(slow.ROOT.parent / "tests/slow.py", pytestconfig) is None
