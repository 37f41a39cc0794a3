"""Pages take figures from their sources by key, and benchmarks know when they are stale."""

import pytest

from loadtests.bench import freshness
from tests import drift, figures


def test_a_metric_comes_from_the_manifest_and_a_colon_is_no_format():
    manifest = figures.manifests()["yolo9tr"]
    low, high = manifest.intervals["map50"]
    assert figures.look_up("yolo9tr.map50") == f"{manifest.metrics['map50']:.2f}"
    assert figures.look_up("yolo9tr.map50:.3f") == f"{manifest.metrics['map50']:.3f}"
    assert figures.look_up("yolo9tr.map50:interval") == f"{low:.2f} to {high:.2f}"
    key = "bench/longctx_dense/targets/prefill fp32: transformers, times ours (at least)"
    assert figures.look_up(f"{key}:.1f") == f"{float(figures.look_up(key)):.1f}"


def test_a_row_of_several_units_is_named_and_a_stale_figure_replaced():
    cost, rate = (
        figures._benchmark("serving", "rows", f"Fovea service, {unit}") for unit in ("CPU ms / request", "requests / s")
    )
    assert cost < rate
    assert (
        figures.fill_in("a <!--=patnet.top_1:.3f-->0.999<!--/--> b\n", "page.md")
        == f"a <!--=patnet.top_1:.3f-->{figures.look_up('patnet.top_1:.3f')}<!--/--> b\n"
    )


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
