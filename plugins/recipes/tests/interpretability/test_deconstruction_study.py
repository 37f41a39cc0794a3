"""Recipes of models to study."""

import numpy as np
import pytest
import torch

from fovea.errors import InvalidOption
from fovea_memory.experiments.routing_clusters import RoutingClusters
from fovea_recipes.interpretability.experiments.deconstruction_study import DeconstructionStudy
from fovea_recipes.interpretability.tiny_induction import LETTERS, TinyInduction
from shared.registry import CallContext, LoadContext

SPEC = {
    "variants": ["standard", "mlp"], "layouts": ["uniform", "hybrid"], "seeds": [1, 2], "steps": 8,
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


def test_known_tokens_follow_from_what_came_before_and_their_loss_falls_when_they_are_learned():
    recipe = TinyInduction()
    last = recipe.schedule.steps - 1
    for step in (0, last // 3, last):
        (batch,) = recipe.batches(step, np.random.default_rng(3))
        assert batch["ids"].shape == (recipe.schedule.batch, recipe.tokens)
        for ids, known in zip(batch["ids"].tolist(), batch["known"].tolist(), strict=True):
            spans = stretches(known)
            for begin, end in spans:
                # Where strings take turns, the token before stands before it there, too: the string's first.
                wanted = ids[begin - (len(spans) > 1) : end]
                assert any(ids[i : i + len(wanted)] == wanted for i in range(begin - 1)), "it came before"
    recipe = TinyInduction(width=16, layers=1, heads=2, kv_heads=1)
    torch.manual_seed(0)
    network = recipe.network().train()
    (batch,) = recipe.batches(0, np.random.default_rng(0))
    optimizer = recipe.optimizer(network)
    losses = []
    for _ in range(12):
        loss = recipe.loss(network, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(np.log(256), abs=0.3)
    assert losses[-1] < losses[0] - 0.3


def stretches(known):
    return [(int(a), int(b)) for a, b in np.flatnonzero(np.diff([False, *known, False])).reshape(-1, 2)]


@pytest.mark.parametrize(("between", "repeats", "known", "share"), [(0, 5, 29, 0.8), (150, 2, 7, 0.6)])
def test_served_model_copies_strings_that_it_never_saw_across_a_gap_too(tiny, between, repeats, known, share):
    rng, right = np.random.default_rng(99), []
    for _ in range(20):
        asked, gap = ("".join(rng.choice(list(LETTERS), size)) for size in (10, between))
        ids = tiny.encode(gap.join([asked] * repeats))
        best = tiny.model(tiny.tensor([ids]))[0].argmax(-1).tolist()
        right += [best[i] == ids[i + 1] for i in range(len(ids) - 1 - known, len(ids) - 1)]
    assert np.mean(right) > share
