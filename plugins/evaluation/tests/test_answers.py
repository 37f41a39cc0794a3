"""Answers: their claims, what covers them, nuggets, and what a model says of both."""

import pytest

from fovea_evaluation import claims
from fovea_evaluation.metrics.answers import score_answer
from plugins.evaluation.tests.test_system_routes import post


def test_sentences_keep_their_citations_and_what_is_said_twice_is_kept_once():
    text = "The moon makes tides. [1] The sun helps, by 46 % [2, m3]. Dr. Who said so! Is it 3.5 m high?"
    found = claims.split_sentences(text)
    assert (found[0], claims.read_citations(found[1])) == ("The moon makes tides. [1]", ["2", "m3"])
    assert (claims.strip_citations(found[1]), found[-1]) == ("The sun helps, by 46 %.", "Is it 3.5 m high?")
    assert claims.split_sentences("  ") == []
    assert claims.split_sentences("Why is it so? [1]. Because. [2]") == ["Why is it so? [1].", "Because. [2]"]
    said = ["The moon causes tides.", "Yeast makes dough rise.", "Tides are caused by the moon."]
    assert claims.drop_repetitions(said) == [0, 1]


def test_a_claim_is_covered_by_its_source_and_not_by_another_nor_with_another_number():
    sources = [
        "High water comes about every twelve hours, because the moon's gravity stretches the oceans. Ships wait.",
        "Bread rises because yeast makes gas in warm dough.",
    ]
    found = claims.cover_claims(
        ["The moon's gravity stretches the oceans.", "High water comes every 9 hours."], sources
    )
    assert (claims.classify_coverage(found[0, 0]), claims.classify_coverage(found[0, 1])) == ("support", "not_support")
    assert claims.classify_coverage(found[1, 0]) == "not_support"


def test_nugget_scores_follow_their_definitions():
    found = score_answer(
        ["vital", "vital", "okay", "okay"],
        ["support", "partial_support", "support", "not_support"],
        [True, True, False, False],
    )
    assert (found.vital_recall, found.strict_vital_recall) == (pytest.approx(0.75), pytest.approx(0.5))
    assert found.all_recall == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert (found.strict_all_recall, found.precision) == (pytest.approx((1 + 0.5) / 3), pytest.approx(0.5))
    assert found.f1 == pytest.approx(0.6)
    none = score_answer([], [], [])
    assert (none.vital_recall, none.precision, none.f1) == (None, None, None)
    assert score_answer(["vital"], ["not_support"], [False]).f1 == 0


def test_answers_are_judged_by_a_model(client):
    body = {"query": "what causes tides", "passages": {"1": "The moon makes tides.", "2": "Bread rises."}}
    found = post(client, "nuggets", body)["nuggets"]
    assert [(one["text"], one["importance"]) for one in found] == [
        ("The moon pulls the oceans.", "vital"),
        ("The sun helps.", "okay"),
    ]
    answer = "The moon pulls the oceans [1]. The moon is old [2]. Bread is baked [9]."
    assigned = post(client, "nuggets/assign", {"query": body["query"], "answer": answer, "nuggets": found})
    assert assigned["supports"] == ["support", "not_support"]
    assert (assigned["vital_recall"], assigned["all_recall"]) == (1, pytest.approx(2 / 3))
    support = post(client, "support", {**body, "answer": answer})
    assert [one["cited"] for one in support["sentences"]] == [
        {"1": "support"}, {"2": "not_support"}, {"9": "not_support"},
    ]  # fmt: skip
    assert support["unknown"] == ["9"]
    assert support["citation_precision"] == support["citation_recall"] == pytest.approx(1 / 3)
    assert support["faithfulness"] == pytest.approx(2 / 3)
