"""`fovea judge …` from runs to a defensible statement: import, trust, weights, significance, corrections, budgets."""

import json
from pathlib import Path
from typing import Any

import pytest

from services.relevance_judge.parsing.trec import format_qrels, read_qrels
from services.relevance_judge.storage.mini_collection import load_mini_collection

MINI = load_mini_collection()


def texts(files: Path) -> list[Any]:
    return ["--topics", files / "topics.tsv", "--passages", files / "passages.jsonl"]


def runs(files: Path) -> list[Any]:
    return [word for name in ("bm25", "overlap", "query-likelihood") for word in ("--run", files / f"runs/{name}.trec")]


def test_a_judge_is_called_better_or_not_and_the_exit_code_says_so(fovea, files):
    common = ["judge", "trust", files / "qrels.txt"]
    code, out, err = fovea(*common, files / "judgements/query-lift.jsonl", *texts(files), "--no-embedding")
    assert (code, "better than every baseline" in out, "bm25" in out) == (0, True, True), err
    code, out, _ = fovea(*common, files / "judgements/overlap.jsonl", *texts(files), "--no-embedding", "--json")
    assert (code, json.loads(out)["is_better"]) == (1, False)


def test_weights_are_fitted_and_written_as_options(fovea, files, tmp_path):
    judges = [files / f"judgements/{name}.jsonl" for name in ("similarity", "query-lift")]
    code, out, err = fovea("judge", "weights", files / "qrels.txt", *judges, "-o", tmp_path / "options.json")
    assert (code, "similarity" in out) == (0, True), err
    options = json.loads((tmp_path / "options.json").read_text())
    assert [one["template"].split("@")[0] for one in options["members"]] == ["similarity", "query-lift"]
    (tmp_path / "topics.tsv").write_text((files / "topics.tsv").read_text().splitlines()[0])
    passage = json.loads((files / "passages.jsonl").read_text().splitlines()[0])
    (tmp_path / "passages.jsonl").write_text(json.dumps(passage))
    small = ["--topics", tmp_path / "topics.tsv", "--passages", tmp_path / "passages.jsonl"]
    for member in options["members"]:
        member["calibration"].pop("model")  # the model of this test has another name
    options["calibration"].pop("model", None)
    (tmp_path / "options.json").write_text(json.dumps(options))
    code, out, err = fovea("judge", "batch", *small, "-j", "ensemble", "--options", tmp_path / "options.json", "--json")
    assert (code, json.loads(out)["graded"]) == (0, 1), err


def test_systems_are_compared_in_sentences(fovea, files):
    code, out, err = fovea("judge", "significance", files / "qrels.txt", *runs(files), "--correction", "max-t")
    assert (code, "max-t over 3 comparisons" in out) == (0, True), err
    code, out, _ = fovea("judge", "significance", files / "qrels.txt", *runs(files), "--baseline", "bm25", "--json")
    assert {row["second"] for row in json.loads(out)["comparisons"]} == {"bm25"}


def test_scores_are_corrected_and_labels_are_planned(fovea, files, tmp_path):
    sample = {pair: grade for pair, grade in MINI.labels.items() if int(pair[0]) <= 10}
    (tmp_path / "human.txt").write_text(format_qrels(sample))
    given = [tmp_path / "human.txt", files / "judgements/query-lift.jsonl", *runs(files)]
    code, out, err = fovea("judge", "corrected", *given)
    assert (code, "prediction-powered over 10 queries" in out) == (0, True), err
    code, out, err = fovea("judge", "budget", *given, "-w", "0.05", "--between", "bm25", "overlap", "--total", "400")
    assert (code, "bm25 − overlap" in out) == (0, True), err
    code, out, _ = fovea("judge", "budget", *given, "-w", "0.05", "--json")
    assert len(json.loads(out)["plans"]) == 3


def test_a_collection_of_cranfields_form_is_imported_in_one_command(fovea, tmp_path):
    (tmp_path / "docs").write_bytes(b".I 1\n.T\nwings\n.W\nlift of a wing at \xa35\n.I 2\n.W\nheat of a plate\n")
    (tmp_path / "topics").write_text("\ufeff.I 001\n.W\nlift of a wing\n.I 004\n.W\nheat of a wing\n", "utf8")
    (tmp_path / "rel").write_text("1 1 1\n2 2 3\n")
    sources = [tmp_path / name for name in ("docs", "topics", "rel")]
    code, _, err = fovea("judge", "import", *sources, "-o", tmp_path / "out", "--others", "1")
    assert (code, "by position" in err, "docs is not UTF-8; it was read as Windows-1252" in err) == (0, True, True), err
    assert json.loads((tmp_path / "out/passages.jsonl").read_text().splitlines()[0])["text"].endswith("at £5")
    assert read_qrels(tmp_path / "out/qrels.txt") == {("1", "1"): 3, ("2", "2"): 1, ("2", "1"): 0}
    code, _, err = fovea("judge", "import", *sources, "-o", tmp_path / "out", "--grade", "1=2", "--grade", "3=0")
    assert (code, read_qrels(tmp_path / "out/qrels.txt")) == (0, {("1", "1"): 2, ("2", "2"): 0}), err
    assert fovea("judge", "import", *sources, "-o", tmp_path / "out", "--grade", "x")[0] == 2


def test_preferences_show_the_bias_of_a_model_that_does_not_choose(fovea, files, judging):
    judging.model.say, before = (lambda _: "A"), judging.model.say
    try:
        words = ["judge", "preferences", *texts(files), "--reference", files / "qrels.txt", "-n", "10"]
        code, out, err = fovea(*words)
    finally:
        judging.model.say = before
    assert (code, "0 of 10 comparisons" in out) == (0, True), err


@pytest.mark.parametrize("what", ["nuggets", "support"])
def test_answers_are_checked_without_a_language_model(fovea, tmp_path, what):
    (tmp_path / "p.jsonl").write_text(json.dumps({"id": "1", "text": "The moon makes tides. Bread is baked."}))
    (tmp_path / "a.txt").write_text("The moon makes tides [1].")
    given = ["--passages", tmp_path / "p.jsonl", "--answer", tmp_path / "a.txt", "--how", "similarity"]
    code, out, err = fovea("judge", what, "what makes tides", *given)
    assert code == 0, err
    assert "moon makes tides" in out
    code, out, _ = fovea("judge", what, "what makes tides", *given, "--json")
    assert (code, json.loads(out)["faithfulness" if what == "support" else "vital_recall"]) == (0, 1.0)
