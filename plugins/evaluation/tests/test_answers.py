"""Answers: their claims, what covers them, nuggets, and what a model says of both; passages compared in both orders."""

import tracemalloc

import numpy as np
import pytest

from fovea_evaluation import claims, comparisons
from fovea_evaluation.metrics.answers import score_answer
from fovea_evaluation.metrics.preferences import Preference, measure_order_bias
from plugins.evaluation.tests.test_systems import MINI
from services.relevance_judge.chat_client import ChatReply
from services.relevance_judge.parsing.trec import format_qrels
from services.relevance_judge.tests.conftest import post

FILES = {"topics": "topics.tsv", "passages": "passages.jsonl"}
TEXTS = {name: (MINI.folder / file).read_text() for name, file in FILES.items()}


def test_sentences_keep_their_citations_are_kept_once_and_covered_by_their_source_alone():
    text = "The moon makes tides. [1] The sun helps, by 46 % [2, m3]. Dr. Who said so! Is it 3.5 m high?"
    found = claims.split_sentences(text)
    assert (found[0], claims.read_citations(found[1])) == ("The moon makes tides. [1]", ["2", "m3"])
    assert (claims.strip_citations(found[1]), found[-1]) == ("The sun helps, by 46 %.", "Is it 3.5 m high?")
    assert claims.split_sentences("  ") == []
    (first, _) = claims.split_sentences("It is so. [msmarco_v2.1_doc_29_12#3_56, doi:10.1/x] Next.")
    assert claims.read_citations(first) == ["msmarco_v2.1_doc_29_12#3_56", "doi:10.1/x"]
    assert claims.strip_citations(first) == "It is so."
    assert claims.split_sentences("Why is it so? [1]. Because. [2]") == ["Why is it so? [1].", "Because. [2]"]
    for text in ("Es war so [1]. Überall Wasser [2].", "大坝决口[1]。到处都是水[2]。", "Так было [1]. Вода [2]."):
        assert [claims.read_citations(one) for one in claims.split_sentences(text)] == [["1"], ["2"]]
    assert len(claims.split_sentences("Das gilt u. a. für ältere Dämme, и т. д. ниже.")) == 1
    said = ["The moon causes tides.", "Yeast makes dough rise.", "Tides are caused by the moon."]
    assert claims.drop_repetitions(said) == [0, 1]
    sources = [
        "High water comes about every twelve hours, because the moon's gravity stretches the oceans. Ships wait.",
        "Bread rises because yeast makes gas in warm dough.",
    ]
    said = ["The moon's gravity stretches the oceans.", "High water comes every 9 hours."]
    told = [[claims.classify_coverage(share) for share in row] for row in claims.cover_claims(said, sources)]
    assert (told[0], told[1][0]) == (["support", "not_support"], "not_support")


def test_nugget_scores_follow_their_definitions():
    supports = ["support", "partial_support", "support", "not_support"]
    found = score_answer(["vital", "vital", "okay", "okay"], supports, [True, True, False, False])
    assert (found.vital_recall, found.strict_vital_recall) == (pytest.approx(0.75), pytest.approx(0.5))
    assert found.all_recall == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert (found.strict_all_recall, found.precision) == (pytest.approx((1 + 0.5) / 3), pytest.approx(0.5))
    assert found.f1 == pytest.approx(0.6)
    none = score_answer([], [], [])
    assert (none.vital_recall, none.precision, none.f1) == (None, None, None)
    assert score_answer(["vital"], ["not_support"], [False]).f1 == 0


def test_answers_are_judged_by_a_model_and_one_that_always_says_a_is_found_out(client):
    body = {"query": "what causes tides", "passages": {"1": "The moon makes tides.", "2": "Bread rises."}}
    found = post(client, "nuggets", body)["nuggets"]
    told = [(one["text"], one["importance"]) for one in found]
    assert told == [("The moon pulls the oceans.", "vital"), ("The sun helps.", "okay")]
    answer = "The moon pulls the oceans [1]. The moon is old [2]. Bread is baked [9]."
    assigned = post(client, "nuggets/assign", {"query": body["query"], "answer": answer, "nuggets": found})
    assert assigned["supports"] == ["support", "not_support"]
    assert (assigned["vital_recall"], assigned["all_recall"]) == (1, pytest.approx(2 / 3))
    support = post(client, "support", {**body, "answer": answer})
    cited = [one["cited"] for one in support["sentences"]]
    assert (cited, support["unknown"]) == ([{"1": "support"}, {"2": "not_support"}, {"9": "not_support"}], ["9"])
    assert support["citation_precision"] == support["citation_recall"] == pytest.approx(1 / 3)
    assert support["faithfulness"] == pytest.approx(2 / 3)
    found = post(client, "preferences", {**TEXTS, "reference": format_qrels(MINI.labels), "sample": 24})
    assert (found["consistent"]["share"], found["shown_first"]["share"]) == (0, 1)
    assert "shown first wins" in found["statement"]
    assert {row["preferred"] for row in found["results"]} == {0}
    assert 0 < [row["label"] for row in found["results"]].count(0) < 24


def preferences(first: float, length: float = 0, truth: float = 0, count: int = 200) -> list[Preference]:
    """A judge whose log-odds lean to what is shown first, to what is longer, and to what is better."""
    draw, found = np.random.default_rng(0), []
    for _ in range(count):
        words, label = draw.integers(20, 200, 2), int(draw.choice((-1, 1))) if truth else 0
        lean = truth * label + length * (int(words[0]) - int(words[1])) / 100 + float(draw.normal(0, 0.5))
        forward, backward = (1 / (1 + np.exp(-(lean + side * first))) for side in (1, -1))
        found.append(Preference(float(forward), float(backward), int(words[0]), int(words[1]), label))
    return found


def test_judges_that_lean_to_the_first_or_to_length_are_found_out_and_both_orders_are_more_accurate():
    found = measure_order_bias(preferences(first=1.0))
    assert found.shown_first.share == 1
    assert found.shown_first.p < 1e-6
    assert found.consistent.share < 0.5
    assert "shown first wins" in found.statement
    biased, fair = (measure_order_bias(preferences(first=0.2, length=size)) for size in (1.0, 0.0))
    assert biased.longer.share > 0.7
    assert "longer" in biased.statement
    assert fair.longer.interval[0] < 0.5 < fair.longer.interval[1]
    assert "longer" not in fair.statement
    found = measure_order_bias(preferences(first=1.5, truth=1.0, count=300))
    assert found.accuracy.share > found.single_order_accuracy.share + 0.2
    assert measure_order_bias([]).consistent is None


@pytest.mark.parametrize("label", [1, -1])
def test_a_choice_of_neither_side_is_neither_right_nor_wrong(label):
    """Counted as the second passage, a judge that always says A was right wherever people prefer the second."""
    always_first = [Preference(1.0, 0.0, 5, 5, label)] * 9
    right = Preference(0.9, 0.7, 5, 5, 1)
    found = measure_order_bias([*always_first, right])
    assert (found.accuracy.share, found.accuracy.cases) == (1.0, 1)
    silent = measure_order_bias([Preference(0.5, 0.5, 5, 5, label)] * 9)
    assert (silent.accuracy, silent.single_order_accuracy) == (None, None)


@pytest.mark.parametrize(("text", "wanted"), [
    ("A", 1), (" b", 0), ("**B**: it is", 0), ("(A)", 1), ("Answer", 0.5), ("Both", 0.5), ("a passage", 0.5),
    ("", 0.5),
])  # fmt: skip
def test_without_probabilities_only_a_letter_of_its_own_is_a_choice(text, wanted):
    assert comparisons.read_choice(ChatReply(text, "m", 1, {})) == wanted
    assert comparisons.read_choice(ChatReply(text, "m", 1, {"The": 0.0, "It": -9999.0})) == 0.5


def test_comparisons_are_drawn_from_large_pools_in_little_memory(monkeypatch):
    monkeypatch.setattr(comparisons, "MAX_PAIRS", 1000)
    labels = {(str(q), f"d{d}"): d % 4 for q in range(5) for d in range(400)}
    texts = {str(q): "q" for q in range(5)}, {f"d{d}": "p" for d in range(400)}
    tracemalloc.start()
    found = comparisons.sample_comparisons(*texts, labels, most=40, seed=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20, "all 400,000 pairs take 40 MB"
    assert (len(found), sum(pair.label == 0 for pair in found), len({pair.names[0] for pair in found})) == (40, 20, 5)
    assert found == comparisons.sample_comparisons(*texts, labels, most=40, seed=1)
