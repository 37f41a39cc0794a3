"""Networks that are pruned: which weights go, and the claims that follow."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fovea.errors import InvalidOption
from fovea_recipes.interpretability import pruning
from fovea_recipes.interpretability.experiments.sparsity import SparsityStudy
from shared.registry import CallContext
from shared.sparsity import SparsityClaim, lint


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0.05, 0.95), st.integers(0, 99))
def test_the_smallest_weights_go_and_their_share_is_the_one_that_was_asked_for(rows, columns, share, seed):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    left = pruning.prune({"w": weight, "b": weight[0]}, pruning.PruningPattern(share))
    assert int((left["w"] == 0).sum()) == round(share * weight.numel())
    kept, gone = weight[left["w"] != 0].abs(), weight[left["w"] == 0].abs()
    assert not len(kept) or not len(gone) or gone.max() <= kept.min()
    assert torch.equal(left["b"], weight[0])


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (1, 4)])
def test_of_every_m_inputs_n_are_kept_and_what_does_not_divide_stays(n, m):
    torch.manual_seed(0)
    state = {"conv": torch.randn(6, 4, 3, 3), "odd": torch.randn(3, 7)}
    left = pruning.prune(state, pruning.PruningPattern.parse(f"{n}:{m}"))
    assert pruning.verify_nm(left["conv"].flatten(1), n, m)
    assert pruning.sparsity_of(left["conv"]) == 1 - n / m
    assert torch.equal(left["odd"], state["odd"])
    assert pruning.count_stored_bytes({"conv": left["conv"]}) == (6 * 36 * 2 * n // m, 27)


@pytest.mark.parametrize("bad", ["", "1", "0", "-0.5", "4:2", "2:2", "0:4", "a:b", "half", "2:4:8"])
def test_what_is_no_pattern_is_refused(bad):
    with pytest.raises(InvalidOption, match="not a pattern"):
        pruning.PruningPattern.parse(bad)


def test_claims_are_complete_but_for_quality_and_masked_dense_is_called_so(context):
    study = SparsityStudy.load(context)
    spec = study.In.model_validate({**study.card.example, "patterns": ["0.5", "2:4"], "runs": 30})
    (report,) = study.predict([spec], CallContext())
    rows = {row[0]: row for row in report.tables[1].rows}
    claims = {name: SparsityClaim.model_validate_json(row[-1]) for name, row in rows.items()}
    assert ({f.rule for f in lint(claims["0.5"])}, {f.rule for f in lint(claims["2:4"])}) == ({"S7"}, {"S6", "S7"})
    assert claims["0.5"].sparsity_global == pytest.approx(0.5, abs=0.001)
    assert claims["2:4"].nm_verified
    assert not any(claim.measured.kernel_sparse for claim in claims.values())
    before = {name: weight.clone() for name, weight in study.load_model("pranet").model.named_parameters()}
    assert all(pruning.sparsity_of(weight) < 0.4 for weight in before.values() if weight.dim() >= 2)


def test_other_shipped_networks_are_pruned_too(context):
    study = SparsityStudy.load(context)
    (report,) = study.predict([study.In.model_validate({**study.card.example, "lm": "fasternet"})], CallContext())
    assert [row[0] for row in report.tables[0].rows] == ["0.9", "2:4"]
    assert report.tables[0].rows[0][1] == pytest.approx(0.9, abs=0.01)


def test_zeros_are_counted_per_matrix():
    state = {"a.weight": torch.tensor([[0.0, 1.0], [0.0, 2.0]]), "a.bias": torch.zeros(2)}
    assert pruning.sparsity_by_layer(state) == {"a.weight": 0.5}
    assert pruning.sparsity_of(torch.zeros((0, 3))) == 0.0
    assert pruning.sparsity_of(torch.tensor([[0.0, 1.0, 0.0, 0.0]])) == 0.75


def test_one_extra_non_zero_breaks_two_of_four():
    tensor = torch.zeros((3, 8))
    tensor[:, [0, 1, 4, 5]] = 1
    assert pruning.verify_nm(tensor, 2, 4)
    tensor[1, 2] = 1
    assert not pruning.verify_nm(tensor, 2, 4)
    assert not pruning.verify_nm(torch.zeros((2, 6)), 2, 4)
