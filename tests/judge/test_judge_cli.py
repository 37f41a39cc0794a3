"""`fovea judge …` as people use it: against a gateway and the real service, with files, pipes, JSON and mistakes."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from services.relevance_judge.parsing.trec import format_qrels, parse_qrels, read_qrels
from services.relevance_judge.storage.mini_collection import load_mini_collection

MINI = load_mini_collection()


def test_one_pair_is_graded_in_words_or_as_json(fovea):
    code, out, _ = fovea("judge", "pair", "moon tides", "the moon makes tides", "--rationale")
    assert (code, "grade 3" in out, "Most words are there." in out) == (0, True, True)
    code, out, _ = fovea("judge", "pair", "moon tides", "-", "--json", "--template", "direct", stdin="bread is baked")
    verdict = json.loads(out)
    assert (code, verdict["grade"], verdict["template"].split("@")[0]) == (0, 0, "direct")


def test_a_signal_without_cuts_has_no_grade_and_exit_code_one(fovea):
    code, out, _ = fovea("judge", "pair", "moon tides", "the moon", "-j", "query-likelihood")
    assert (code, "no grade" in out, "uncalibrated" in out) == (1, True, True)


def _small(files: Path, folder: Path) -> list[Any]:
    topics = (files / "topics.tsv").read_text().splitlines()[:2]
    passages = [line for line in (files / "passages.jsonl").read_text().splitlines() if json.loads(line)["id"] < "m03"]
    (folder / "topics.tsv").write_text("\n".join(topics))
    with gzip.open(folder / "passages.jsonl.gz", "wt") as file:
        file.write("\n".join(passages))
    return ["--topics", folder / "topics.tsv", "--passages", folder / "passages.jsonl.gz"]


def test_a_batch_is_followed_and_its_labels_are_written_in_the_form_of_the_name(fovea, files, tmp_path):
    texts = _small(files, tmp_path)
    code, out, _ = fovea("judge", "batch", *texts, "-o", tmp_path / "x.qrels")
    assert (code, "32, 32 graded" in out) == (0, True), out
    labels = read_qrels(tmp_path / "x.qrels")
    assert len(labels) == 32
    code, out, _ = fovea("judge", "batch", *texts, "-o", tmp_path / "x.jsonl", "--json")
    assert json.loads(out)["reused"] == 32
    rows = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert {(row["qid"], row["docid"]): row["grade"] for row in rows} == labels
    assert fovea("judge", "batch", *texts, "-o", tmp_path / "x.csv.gz")[0] == 0
    with gzip.open(tmp_path / "x.csv.gz", "rt") as file:
        assert len(list(csv.DictReader(file))) == 32


def test_the_holes_of_a_run_are_filled(fovea, files, tmp_path):
    texts = ["--topics", files / "topics.tsv", "--passages", files / "passages.jsonl"]
    known = tmp_path / "known.qrels"
    known.write_text(format_qrels({pair: grade for pair, grade in MINI.labels.items() if pair[0] != "3"}))
    runs = ["--run", files / "runs" / "bm25.trec", "--depth", 2, "--qrels", known]
    code, out, _ = fovea("judge", "batch", *texts, *runs, "-o", tmp_path / "new.qrels")
    assert code == 0, out
    filled = read_qrels(tmp_path / "new.qrels")
    assert filled
    assert not set(filled) & set(parse_qrels(known.read_text()))


def test_a_spent_budget_is_exit_code_one_and_says_what_is_left(fovea, files, tmp_path):
    texts = _small(files, tmp_path)
    code, out, _ = fovea("judge", "batch", *texts, "--template", "words", "--budget", 1, "--at-once", 1)
    assert (code, "budget" in out, "left" in out) == (1, True, True)


def test_signals_of_a_batch_are_calibrated_kept_and_used(fovea, files, tmp_path):
    texts = _small(files, tmp_path)
    kept = tmp_path / "signals.jsonl"
    code, out, err = fovea("judge", "batch", *texts, "-j", "query-likelihood", "-o", kept)
    assert (code, "32 with a signal and no grade" in out, "invalid" in out, "not calibrated here" in err) == (
        0,
        1,
        0,
        1,
    )
    code, out, err = fovea("judge", "calibrate", kept, files / "qrels.txt", "--name", "words")
    assert (code, "words@1" in out, "Fitted on 2 queries" in err) == (0, True, True), err
    code, out, _ = fovea(
        "judge", "pair", "moon tides", "the moon", "-j", "query-likelihood", "--calibration", "words@1"
    )
    assert (code, "words@1" in out) == (0, True), out


def test_agreement_shows_kappa_alpha_the_grid_and_bias_by_texts(fovea, files):
    words = [files / "qrels.txt", files / "qrels_second.txt"]
    code, out, _ = fovea(
        "judge", "agreement", *words, "--topics", files / "topics.tsv", "--passages", files / "passages.jsonl"
    )
    assert (code, "0.9792" in out, "by length" in out, "012|3" in out) == (0, True, True, True), out
    assert json.loads(fovea("judge", "agreement", *words, "--json")[1])["pairs"] == 192


def test_rankings_show_tau_and_kappa_together(fovea, files):
    runs = [word for name in ("bm25", "overlap") for word in ("--run", files / "runs" / f"{name}.trec")]
    code, out, _ = fovea(
        "judge", "rankings", files / "qrels.txt", files / "qrels_second.txt", *runs, "--family", "bm25=llm"
    )
    assert (code, "tau-b" in out, "kappa" in out, "self-preference" in out) == (0, True, True, True), out


def test_an_ensemble_of_label_files_goes_to_standard_output_or_a_file(fovea, files, tmp_path):
    words = [files / "qrels.txt", files / "qrels_second.txt", files / "qrels.txt"]
    _, out, _ = fovea("judge", "ensemble", *words)
    assert parse_qrels(out) == MINI.labels
    code, _, err = fovea("judge", "ensemble", *words, "-o", tmp_path / "e.qrels", "--combine", "median")
    assert (code, read_qrels(tmp_path / "e.qrels"), "192 pairs" in err) == (0, MINI.labels, True)


def test_the_leaderboard_is_made_of_files_or_comes_with_the_service(fovea, files):
    runs = [word for name in ("bm25", "overlap") for word in ("--run", files / "runs" / f"{name}.trec")]
    code, out, _ = fovea("judge", "leaderboard", files / "qrels.txt", files / "qrels_second.txt", *runs)
    assert (code, "qrels_second" in out, "0.9792" in out, "tau-b" in out) == (0, True, True, True), out
    code, out, _ = fovea("judge", "leaderboard")
    assert (code, "overlap" in out, "query-lift" in out) == (0, True, True), out


def test_templates_are_listed_and_filled_in(fovea):
    _, out, _ = fovea("judge", "templates")
    assert "few-shot" in out
    _, out, _ = fovea("judge", "templates", "direct", "--query", "what is tea")
    assert "what is tea" in out


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["agreement", "none.qrels", "none.qrels"], 4),
        (["agreement", "{bad}", "{bad}"], 3),
        (["batch", "--topics", "{bad}"], 3),
        (["templates", "nope"], 4),
        (["calibrate", "{bad}", "{bad}"], 3),
        (["leaderboard", "--name", "nope"], 4),
        (["agreement", "{bad}.gz", "{bad}"], 3),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code_of_its_kind(fovea, tmp_path, words, wanted):
    bad = tmp_path / "bad.txt"
    bad.write_text("this is not a file of labels\n")
    Path(f"{bad}.gz").write_bytes(b"not gzip")
    code, out, err = fovea("judge", *(word.format(bad=bad) for word in words))
    assert (code, out, len([line for line in err.splitlines() if line.strip()])) == (wanted, "", 1), err
