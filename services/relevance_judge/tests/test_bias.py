"""Bias of judges, and files of labels."""

import json

import pytest

from fovea.errors import Malformed
from services.relevance_judge.metrics.baselines import overlap
from services.relevance_judge.metrics.bias import invalid_share, measure_bias
from services.relevance_judge.parsing.label_formats import MEDIA_TYPES, format_labels, parse_labels, parse_signals
from services.relevance_judge.parsing.trec import format_qrels
from services.relevance_judge.storage.mini_collection import load_mini_collection
from services.relevance_judge.tests.conftest import serve_judges

MINI = load_mini_collection()


def test_a_judge_that_likes_long_passages_or_counts_words_shows_it():
    lengths = {docid: len(text.split()) for docid, text in MINI.passages.items()}
    middle = sorted(lengths.values())[len(lengths) // 2]
    fond = {(q, d): min(g + (lengths[d] > middle), 3) for (q, d), g in MINI.labels.items()}
    found = measure_bias(MINI.labels, fond, MINI.topics, MINI.passages)
    assert found.pairs == sum(part.pairs for part in found.by_length) == 192
    assert ([part.pairs for part in found.by_length], found.by_length[0].bias) == ([64, 64, 64], 0)
    assert found.by_length[2].bias > 0.5
    assert found.by_length[0].highest <= found.by_length[1].lowest
    shares = {(q, d): overlap(MINI.topics[q], {d: MINI.passages[d]})[d] for q, d in MINI.labels}
    fond = {pair: min(grade + (shares[pair] > 0.5), 3) for pair, grade in MINI.labels.items()}
    thirds = measure_bias(MINI.labels, fond, MINI.topics, MINI.passages).by_overlap
    assert thirds[0].bias == 0
    assert thirds[2].bias > 0.4
    assert thirds[2].lowest >= thirds[0].highest


def test_few_pairs_are_no_crash_and_invalid_answers_are_told_per_grade():
    assert measure_bias({("1", "a"): 1}, {}, {"1": "q"}, {"a": "p"}).by_length == []
    (only,) = measure_bias({("1", "a"): 1}, {("1", "a"): 9}, {"1": "q"}, {"a": "p"}).by_overlap
    assert (only.bias, only.kappa) == (2.0, 0.0)
    reference = {("1", "a"): 0, ("1", "b"): 0, ("1", "c"): 3}
    assert invalid_share(reference, [("1", "a"), ("9", "z")]) == [0.5, None, None, 0.0]
    assert invalid_share(reference | {("1", "d"): -2, ("1", "e"): 4}, [("1", "d"), ("1", "e")]) == [
        1 / 3,
        None,
        None,
        0.5,
    ]


def test_labels_go_out_and_come_in_again_in_both_forms():
    rows = [
        {"qid": "1", "docid": "a", "grade": 2, "valid": True},
        {"qid": "1", "docid": "b", "grade": None, "valid": False},
        {"qid": "1", "docid": "c", "error": "gone"},
    ]
    assert parse_labels(format_labels(rows, "qrels"), "x").labels == {("1", "a"): 2}
    found = parse_labels(format_labels(rows, "jsonl"), "x")
    assert (found.labels, found.invalid) == ({("1", "a"): 2}, [("1", "b")])
    assert format_labels(rows, "csv").splitlines()[0].startswith("qid,docid,grade")
    assert set(MEDIA_TYPES) == {"qrels", "jsonl", "csv"}


@pytest.mark.parametrize(
    "text",
    [
        '{"qid": "1"}', '{"qid": "1", "docid": "a", "grade": 1.5}', "{]", '{"qid": "1", "docid": "a", "grade": true}',
        '{"qid": 1, "docid": "a", "grade": 1}\n{"qid": 1, "docid": "a", "grade": 2}', '{"a": 1}\n[1]',
        '{"qid": 1, "docid": "a", "grade": 1000000000000000000000000000000}',
    ],
)  # fmt: skip
def test_broken_json_lines_are_named_by_their_number(text):
    with pytest.raises(Malformed, match=r"Line [12] of judge"):
        parse_labels(text, "judge")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 400])
def test_numbers_that_are_none_do_not_count_and_are_no_signal(number):
    row = f'{{"qid": 1, "docid": "a", "grade": 1, "tokens": {number}, "latency_ms": {number}, "cost": {number}}}'
    found = parse_labels(row, "judge")
    assert (found.tokens, found.seconds, found.cost) == (0, 0.0, None)
    with pytest.raises(Malformed, match="not a finite number"):
        parse_signals(row.replace('"tokens"', '"signal"'), "judge")


def test_a_template_that_is_no_text_is_none():
    rows = '{"qid": 1, "docid": "a", "signal": 1, "template": ["x"], "llm": {}}\n' * 2
    assert parse_signals(rows, "judge").template is None


def test_over_http_bias_invalid_shares_and_disagreements_come_with_the_agreement(tmp_path):
    judge = "\n".join(
        json.dumps({"qid": q, "docid": d, "grade": None if d == "m01-1" else 3, "valid": d != "m01-1"})
        for q, d in MINI.labels
    )
    body = {
        "reference": format_qrels(MINI.labels), "judge": judge, "draws": 50,
        "topics": (MINI.folder / "topics.tsv").read_text(), "passages": (MINI.folder / "passages.jsonl").read_text(),
    }  # fmt: skip
    with serve_judges(tmp_path, {}) as c:
        found = c.post("/v1/judge/agreement", json=body).json()
    assert (found["invalid"], found["pairs"], found["invalid_by_grade"]) == (1, 191, [0, 0, 0, pytest.approx(1 / 48)])
    assert (found["bias_by_text"]["pairs"], {row["reference"] for row in found["disagreements"][:48]}) == (191, {0})
    assert found["disagreements"][-1]["reference"] == 2
