"""Influence of texts: losses, ranks among equals, and what is selected."""

import json

import pytest

from fovea.errors import InvalidOption, Malformed
from fovea_recipes.interpretability.experiments import influence as influences
from services.interpretability.tests.conftest import read
from shared.registry import CallContext


def golden_documents(golden):
    return [influences.Document(d["id"], d["domain"], d["ids"]) for d in golden.facts["attention_influence"]["docs"]]


def test_losses_and_selection_equal_the_golden_ones(golden):
    facts = golden.facts["attention_influence"]
    rows = list(influences.influence(golden.model, golden_documents(golden), [tuple(h) for h in facts["masked_heads"]]))
    for row, expected in zip(rows, facts["docs"], strict=True):
        assert (row.id, row.base) == (expected["id"], pytest.approx(expected["loss_base"], abs=1e-4))
        assert row.masked == pytest.approx(expected["loss_masked"], abs=1e-4)
        assert row.score == pytest.approx(expected["score"], abs=1e-4)
    assert influences.select(rows) == facts["selected_top20pct_per_domain_ceil"]


def test_nothing_hidden_scores_zero_one_token_is_refused_and_long_text_is_a_weighted_mean(golden):
    assert {row.score for row in influences.influence(golden.model, golden_documents(golden), [])} == {0.0}
    window = golden.model.config.positions
    tokens = [i % 60 for i in range(window + 10)]
    parts = (influences.token_loss(golden.model, tokens[:window]), influences.token_loss(golden.model, tokens[window:]))
    assert influences.token_loss(golden.model, tokens) == pytest.approx(
        (parts[0] * (window - 1) + parts[1] * 9) / (window + 8), abs=1e-6
    )
    with pytest.raises(InvalidOption, match="two tokens"):
        influences.token_loss(golden.model, [3])


def test_selection_keeps_one_at_least_and_follows_input_order_on_ties():
    rows = [influences.Influence(i, "a", 1.0, 2.0, score) for i, score in enumerate((0.5, 0.7, 0.7, None))]
    assert (influences.select(rows, 0.01), influences.select(rows, 1.0)) == ({"a": [1]}, {"a": [1, 2, 0]})


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


def test_rows_come_in_input_order_and_ranks_are_among_equals(context):
    rows = rows_of(ask(context, LINES))
    assert [row["id"] for row in rows] == ["a", "b", 3]
    assert "below 16" in rows[2]["error"]
    assert {"base", "masked", "score", "control_score", "rank", "percentile", "selected"} <= rows[0].keys()
    rows = rows_of(ask(context, [*LINES[:2], {**LINES[0], "id": "c", "domain": "y"}]))
    assert (sorted(row["rank"] for row in rows), sum(row["selected"] for row in rows)) == ([1, 1, 2], 2)
    lines = [{"id": i, "text": "kqzwxm " * n} for i, n in enumerate((3, 3, 30, 30))]
    assert sorted(row["rank"] for row in rows_of(ask(context, lines, by_length=True))) == [1, 1, 2, 2]


def test_fewer_other_heads_than_are_hidden_are_no_control(context):
    heads = [[layer, head] for layer in range(2) for head in range(4)]
    report = ask(context, LINES, heads=heads[:-1])
    assert [row["control_score"] for row in rows_of(report)[:2]] == [None] * 2
    control = next(table for table in report.tables if table.name == "control")
    assert (control.rows, "too few are left for a control" in report.warnings[0]) == ([], True)


def test_texts_hold_other_line_breaks_than_those_between_documents(context):
    assert [row["id"] for row in rows_of(ask(context, [{**LINES[0], "text": "kqzwxm\u2028hjvbtp\x85" * 3}]))] == ["a"]


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


def test_losses_of_the_real_model_equal_the_golden_ones(smollm2):
    facts = read("smollm2_attention_influence.json")
    for case in facts["docs"][4:5]:  # the shortest
        tokens = smollm2.encode(case["text"])
        assert len(tokens) == case["tokens"]
        for name, heads in (("base", []), ("top14", facts["masked_heads"])):
            assert influences.token_loss(smollm2.model, tokens, [tuple(h) for h in heads]) == pytest.approx(
                case[name], abs=0.01
            )
