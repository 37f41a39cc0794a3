"""The deconstruction study sets its table against the paper's; clusters of a routing model are shown."""

import pytest

from fovea.errors import InvalidOption
from fovea_memory.experiments.routing_clusters import RoutingClusters
from fovea_recipes.interpretability.experiments.deconstruction_study import DeconstructionStudy
from shared.registry import CallContext, LoadContext

SPEC = {
    "variants": ["standard", "mlp"], "layouts": ["uniform", "hybrid"], "seeds": [1, 2], "steps": 16,
    "size": {"width": 16, "layers": 2, "heads": 2, "context": 32, "batch": 4},
}  # fmt: skip


def test_the_report_sets_the_papers_table_beside_ours(tmp_path):
    study = DeconstructionStudy.load(LoadContext(cache=tmp_path, weights=tmp_path / "none", threads=1))
    (report,) = study.predict([study.In.model_validate(SPEC)], CallContext())
    table = report.tables[0]
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert (set(rows), rows["uniform mlp"]["paper's perplexity"]) == ({"standard", "uniform mlp", "hybrid mlp"}, 993.5)
    assert all(row["seeds"] == 2 and row["sd"] >= 0 for row in rows.values())
    assert rows["standard"]["over standard"] == 0
    assert rows["hybrid mlp"]["without its layers"] != rows["hybrid mlp"]["bits/byte"]
    states = {row[0]: row[2] for row in report.tables[1].rows}
    assert states["uniform mlp"] == 0 < states["hybrid mlp"] < states["standard"]


def test_clusters_of_a_layer_hold_every_token_once_per_head(tmp_path):
    probe = RoutingClusters.load(LoadContext(cache=tmp_path, weights=tmp_path, threads=1))
    text = "def add(a, b):\n    return a + b\n"
    (report,) = probe.predict([probe.In.model_validate({"text": text})], CallContext())
    for head in {row[0] for row in report.tables[0].rows}:
        assert sum(row[2] for row in report.tables[0].rows if row[0] == head) == len(text)
    assert 0 <= report.scalars["alone"].value <= 1
    layer = int(report.title.rpartition(" ")[2])
    (same,) = probe.predict([probe.In.model_validate({"text": text, "layer": layer})], CallContext())
    assert same.tables == report.tables
    (lost,) = probe.predict([probe.In.model_validate({"text": text, "layer": 9})], CallContext())
    assert isinstance(lost, InvalidOption)


@pytest.mark.parametrize("bad", [{"size": {"width": 30, "heads": 4}}, {"data": "text"}, {"text": "short"}])
def test_a_study_that_can_not_be_is_refused(tmp_path, bad):
    study = DeconstructionStudy.load(LoadContext(cache=tmp_path, weights=tmp_path, threads=1))
    (refused,) = study.predict([study.In.model_validate({**SPEC, **bad})], CallContext())
    assert isinstance(refused, InvalidOption)
