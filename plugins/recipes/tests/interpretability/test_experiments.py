"""Experiments on influence of texts (losses, ranks, what is selected) and on pruned networks and their claims."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fovea.errors import InvalidOption, Malformed
from fovea_recipes.interpretability import pruning
from fovea_recipes.interpretability.experiments import influence as influences
from fovea_recipes.interpretability.experiments.sparsity import SparsityStudy
from services.interpretability.tests.conftest import read
from shared.registry import CallContext
from shared.sparsity import SparsityClaim, lint


def golden_documents(golden):
    return [influences.Document(d["id"], d["domain"], d["ids"]) for d in golden.facts["attention_influence"]["docs"]]


def test_losses_and_selection_equal_the_golden_ones_which_keeps_one_at_least(golden):
    facts = golden.facts["attention_influence"]
    rows = list(influences.influence(golden.model, golden_documents(golden), [tuple(h) for h in facts["masked_heads"]]))
    for row, expected in zip(rows, facts["docs"], strict=True):
        assert (row.id, row.base) == (expected["id"], pytest.approx(expected["loss_base"], abs=1e-4))
        assert row.masked == pytest.approx(expected["loss_masked"], abs=1e-4)
        assert row.score == pytest.approx(expected["score"], abs=1e-4)
    assert influences.select(rows) == facts["selected_top20pct_per_domain_ceil"]
    rows = [influences.Influence(i, "a", 1.0, 2.0, score) for i, score in enumerate((0.5, 0.7, 0.7, None))]
    assert (influences.select(rows, 0.01), influences.select(rows, 1.0)) == ({"a": [1]}, {"a": [1, 2, 0]})
    assert len(influences.select(rows[:1] * 100, 0.07)["a"]) == 7  # 0.07 * 100 is a little more than 7
    spec = influences.InfluenceSpec.model_construct(select=0.07, by_length=False)
    rated = [{"domain": "a", "tokens": 20, "score": 0.5} for _ in range(100)]
    assert sum(row["selected"] for row in influences._rank_rows(rated, spec)) == 7


def test_losses_of_the_real_model_equal_the_golden_ones(smollm2):
    facts = read("smollm2_attention_influence.json")
    case = facts["docs"][4]  # the shortest
    tokens = smollm2.encode(case["text"])
    assert len(tokens) == case["tokens"]
    for name, heads in (("base", []), ("top14", facts["masked_heads"])):
        found = influences.token_loss(smollm2.model, tokens, [tuple(head) for head in heads])
        assert found == pytest.approx(case[name], abs=0.01)


def test_nothing_hidden_scores_zero_one_token_is_refused_and_long_text_is_a_weighted_mean(golden):
    assert {row.score for row in influences.influence(golden.model, golden_documents(golden), [])} == {0.0}
    window = golden.model.config.positions
    tokens = [i % 60 for i in range(window + 10)]
    parts = (influences.token_loss(golden.model, tokens[:window]), influences.token_loss(golden.model, tokens[window:]))
    mean = (parts[0] * (window - 1) + parts[1] * 9) / (window + 8)
    assert influences.token_loss(golden.model, tokens) == pytest.approx(mean, abs=1e-6)
    with pytest.raises(InvalidOption, match="two tokens"):
        influences.token_loss(golden.model, [3])


LINES = [
    {"id": "a", "domain": "x", "text": "kqzwxm " * 4},
    {"id": "b", "domain": "x", "text": "abcdefghijklmnopqrst"},
    {"id": 3, "domain": "y", "text": "short"},
]


def ask(context, lines, **options):
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    spec = influences.InfluenceSpec.model_validate({"lm": "tiny", "documents": text, "heads": [[1, 0]], **options})
    return influences.AttentionInfluence.load(context).predict([spec], CallContext())[0]


def rows_of(report):
    return [json.loads(line) for line in report.artefacts[0].content.splitlines()]


def test_rows_come_in_input_order_with_ranks_among_equals_and_a_control_where_heads_are_left(context):
    rows = rows_of(ask(context, LINES))
    assert [row["id"] for row in rows] == ["a", "b", 3]
    assert "below 16" in rows[2]["error"]
    assert {"base", "masked", "score", "control_score", "rank", "percentile", "selected"} <= rows[0].keys()
    rows = rows_of(ask(context, [*LINES[:2], {**LINES[0], "id": "c", "domain": "y"}]))
    assert (sorted(row["rank"] for row in rows), sum(row["selected"] for row in rows)) == ([1, 1, 2], 2)
    lines = [{"id": i, "text": "kqzwxm " * n} for i, n in enumerate((3, 3, 30, 30))]
    assert sorted(row["rank"] for row in rows_of(ask(context, lines, by_length=True))) == [1, 1, 2, 2]
    assert [row["id"] for row in rows_of(ask(context, [{**LINES[0], "text": "kqzwxm\u2028hjvbtp\x85" * 3}]))] == ["a"]
    heads = [[layer, head] for layer in range(2) for head in range(4)]
    report = ask(context, LINES, heads=heads[:-1])
    assert [row["control_score"] for row in rows_of(report)[:2]] == [None] * 2
    control = next(table for table in report.tables if table.name == "control")
    assert (control.rows, "too few are left for a control" in report.warnings[0]) == ([], True)


@pytest.mark.parametrize("line", ['{"id": 1}', "[]", "nonsense"])
def test_a_bad_line_is_refused_by_its_number_and_an_unknown_head_by_its_field(context, line):
    spec = influences.InfluenceSpec(lm="tiny", documents=json.dumps(LINES[0]) + "\n\n" + line, heads=[[0, 0]])
    (error,) = influences.AttentionInfluence.load(context).predict([spec], CallContext())
    assert isinstance(error, Malformed)
    assert "Line 3" in error.detail
    spec = spec.model_copy(update={"documents": json.dumps(LINES[0]), "heads": [[7, 0]]})
    (error,) = influences.AttentionInfluence.load(context).predict([spec], CallContext())
    assert isinstance(error, InvalidOption)
    assert error.field == "heads"


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


def test_claims_of_any_network_are_complete_but_for_quality_and_masked_dense_is_called_so(context):
    study = SparsityStudy.load(context)
    options = {"lm": "fovea-landmark-recall", "patterns": ["0.5", "2:4"], "runs": 30}
    (report,) = study.predict([study.In.model_validate({**study.card.example, **options})], CallContext())
    rows = {row[0]: row for row in report.tables[1].rows}
    claims = {name: SparsityClaim.model_validate_json(row[-1]) for name, row in rows.items()}
    assert ({f.rule for f in lint(claims["0.5"])}, {f.rule for f in lint(claims["2:4"])}) == ({"S7"}, {"S6", "S7"})
    assert claims["0.5"].sparsity_global == pytest.approx(0.5, abs=0.001)
    assert claims["2:4"].nm_verified
    assert not any(claim.measured.kernel_sparse for claim in claims.values())
    served = [weight for weight in study.load_model("fovea-landmark-recall").model.parameters() if weight.dim() >= 2]
    assert all(pruning.sparsity_of(weight) < 0.4 for weight in served)
    options = {"lm": "fasternet", "patterns": ["0.9", "2:4", "5:11"]}
    (report,) = study.predict([study.In.model_validate({**study.card.example, **options})], CallContext())
    assert [(row[0], row[4]) for row in report.tables[0].rows] == [("0.9", None), ("2:4", True), ("5:11", False)]
    assert report.tables[0].rows[0][1] == pytest.approx(0.9, abs=0.01)
    options = {"lm": "fovea-landmark-recall", "patterns": ["0.99999999"]}
    (refused,) = study.predict([study.In.model_validate({**study.card.example, **options})], CallContext())
    assert "leaves no weight" in str(refused)


def test_zeros_are_counted_per_matrix_and_one_extra_non_zero_breaks_two_of_four():
    state = {"a.weight": torch.tensor([[0.0, 1.0], [0.0, 2.0]]), "a.bias": torch.zeros(2)}
    assert pruning.sparsity_by_layer(state) == {"a.weight": 0.5}
    assert pruning.sparsity_of(torch.zeros((0, 3))) == 0.0
    assert pruning.sparsity_of(torch.tensor([[0.0, 1.0, 0.0, 0.0]])) == 0.75
    tensor = torch.zeros((3, 8))
    tensor[:, [0, 1, 4, 5]] = 1
    assert pruning.verify_nm(tensor, 2, 4)
    tensor[1, 2] = 1
    assert not pruning.verify_nm(tensor, 2, 4)
    assert not pruning.verify_nm(torch.zeros((2, 6)), 2, 4)
