"""The judge's command, also over evidence."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from fovea.cli.commands.judge.labelling import _build_training
from fovea.cli.commands.judge.options import read_judges, read_runs
from fovea.cli.text_files import write_text
from fovea.errors import Malformed
from services.relevance_judge.parsing.trec import format_qrels, parse_qrels, read_qrels
from services.relevance_judge.storage.mini_collection import load_mini_collection

MINI = load_mini_collection()


CSV = ["--format", "csv"]


def texts(files: Path) -> list[Any]:
    return ["--topics", files / "topics.tsv", "--passages", files / "passages.jsonl"]


def runs(files: Path) -> list[Any]:
    return [word for name in ("bm25", "overlap", "query-likelihood") for word in ("--run", files / f"runs/{name}.trec")]


def test_one_pair_is_graded_and_a_signal_without_cuts_has_no_grade(fovea):
    code, out, _ = fovea("judge", "pair", "moon tides", "the moon makes tides", "--rationale")
    assert (code, "grade 3" in out, "Most words are there." in out) == (0, True, True)
    code, out, _ = fovea("judge", "pair", "moon tides", "-", "--json", "--template", "direct", stdin="bread is baked")
    verdict = json.loads(out)
    assert (code, verdict["grade"], verdict["template"].split("@")[0]) == (0, 0, "direct")
    code, out, err = fovea("judge", "pair", "moon tides", "the moon", "-j", "query-likelihood", *CSV)
    assert (code, "no grade" in err, "uncalibrated" in out) == (1, True, True)


def _small(files: Path, folder: Path) -> list[Any]:
    topics = (files / "topics.tsv").read_text().splitlines()[:2]
    passages = [line for line in (files / "passages.jsonl").read_text().splitlines() if json.loads(line)["id"] < "m03"]
    (folder / "topics.tsv").write_text("\n".join(topics))
    with gzip.open(folder / "passages.jsonl.gz", "wt") as file:
        file.write("\n".join(passages))
    return ["--topics", folder / "topics.tsv", "--passages", folder / "passages.jsonl.gz"]


def test_a_batch_is_followed_and_its_labels_are_written_in_the_form_of_the_name(fovea, files, tmp_path):
    small = _small(files, tmp_path)
    code, out, _ = fovea("judge", "batch", *small, "-o", tmp_path / "x.qrels")
    assert (code, "32, 32 graded" in out) == (0, True), out
    labels = read_qrels(tmp_path / "x.qrels")
    assert len(labels) == 32
    code, out, _ = fovea("judge", "batch", *small, "-o", tmp_path / "x.jsonl", "--json")
    assert json.loads(out)["reused"] == 32
    rows = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert {(row["qid"], row["docid"]): row["grade"] for row in rows} == labels
    assert fovea("judge", "batch", *small, "-o", tmp_path / "x.csv.gz")[0] == 0
    with gzip.open(tmp_path / "x.csv.gz", "rt") as file:
        assert len(list(csv.DictReader(file))) == 32


def test_holes_of_a_run_are_filled_and_a_spent_budget_is_exit_code_one(fovea, files, tmp_path):
    known = tmp_path / "known.qrels"
    known.write_text(format_qrels({pair: grade for pair, grade in MINI.labels.items() if pair[0] != "3"}))
    run = ["--run", files / "runs" / "bm25.trec", "--depth", 2, "--qrels", known]
    code, out, _ = fovea("judge", "batch", *texts(files), *run, "-o", tmp_path / "new.qrels")
    assert code == 0, out
    filled = read_qrels(tmp_path / "new.qrels")
    assert filled
    assert not set(filled) & set(parse_qrels(known.read_text()))
    small = _small(files, tmp_path)
    code, out, _ = fovea("judge", "batch", *small, "--template", "words", "--budget", 1, "--at-once", 1)
    assert (code, "budget" in out, "left" in out) == (1, True, True)


def test_signals_of_a_batch_are_calibrated_kept_and_used(fovea, files, tmp_path):
    kept = tmp_path / "signals.jsonl"
    code, out, err = fovea("judge", "batch", *_small(files, tmp_path), "-j", "query-likelihood", "-o", kept)
    assert (code, "32 with a signal and no grade" in out, "not calibrated here" in err) == (0, True, True)
    assert "invalid" not in out
    code, out, err = fovea("judge", "calibrate", kept, files / "qrels.txt", "--name", "words")
    assert (code, "words@1" in out, "Fitted on 2 queries" in err) == (0, True, True), err
    pair = ("judge", "pair", "moon tides", "the moon", "-j", "query-likelihood")
    code, out, _ = fovea(*pair, "--calibration", "words@1")
    assert (code, "words@1" in out) == (0, True), out


def test_labels_that_cuts_are_fitted_to_are_read_as_they_are():
    rows = [{"qid": 7, "docid": d, "signal": s, "answer": "a\u2028b"} for d, s in (("a", 0.1), ("b", 0.9), ("c", 0.5))]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    found = _build_training(lines, "7 0 a -2\r\n\n7 0 b 4\n")
    assert (found["signals"], found["grades"]) == ([0.1, 0.9], [0, 3])
    assert (found["queries"], found["pairs"]) == (["7", "7"], ["7 a", "7 b"])
    with pytest.raises(Malformed, match="Line 2"):
        _build_training(lines, "7 0 a 1\n7 b 3\n")
    with pytest.raises(Malformed, match=r"Line 3 of .* again"):
        _build_training(lines, "7 0 a 1\n7 0 b 2\n7 0 a 3\n")
    assert _build_training(lines, "7 0 a 3\n7 0 a 9\n")["grades"] == [3]


def test_judges_of_one_file_name_and_files_with_marks_and_without_last_line_breaks_stay_apart(tmp_path):
    paths = [tmp_path / name for name in ("one/labels.jsonl", "two/labels.jsonl", "other.jsonl.gz")]
    for path in paths:
        write_text(path, f"\ufeff1 0 {path.parent.name} 1".encode())
    found = read_judges(paths)
    assert list(found) == [str(paths[0]), str(paths[1]), "other"]
    assert [*found.values()] == ["1 0 one 1", "1 0 two 1", f"1 0 {tmp_path.name} 1"]
    assert read_runs(paths[:2]).split("\n") == ["1 0 one 1", "1 0 two 1"]


def test_agreement_and_rankings_show_kappa_alpha_tau_and_bias(fovea, files):
    words = [files / "qrels.txt", files / "qrels_second.txt"]
    code, out, _ = fovea("judge", "agreement", *words, *texts(files))
    assert (code, "0.9792" in out, "by length" in out, "012|3" in out) == (0, True, True, True), out
    assert json.loads(fovea("judge", "agreement", *words, "--json")[1])["pairs"] == 192
    table = csv.reader(fovea("judge", "agreement", *words, *texts(files), *CSV)[1].splitlines())
    assert dict(table)["reference 0, judge 0"] == "48"
    for form in ([], CSV):
        code, *told = fovea("judge", "rankings", *words, *runs(files), "--family", "bm25=llm", *form)
        facts = told[bool(form)]
        assert (code, "tau-b" in facts, "kappa" in facts, "self-preference" in facts) == (0, True, True, True), told


def test_an_ensemble_of_label_files_goes_to_standard_output_or_a_file(fovea, files, tmp_path):
    words = [files / "qrels.txt", files / "qrels_second.txt", files / "qrels.txt"]
    _, out, _ = fovea("judge", "ensemble", *words)
    assert parse_qrels(out) == MINI.labels
    for form in ("table", "json"):
        into = tmp_path / f"{form}.qrels"
        code, _, err = fovea("judge", "ensemble", *words, "-o", into, "--combine", "median", "--format", form)
        assert (code, read_qrels(into), "192 pairs" in err) == (0, MINI.labels, True)


def test_the_leaderboard_is_shown_and_templates_are_filled_in(fovea, files):
    code, out, _ = fovea("judge", "leaderboard", files / "qrels.txt", files / "qrels_second.txt", *runs(files))
    assert (code, "qrels_second" in out, "0.9792" in out, "tau-b" in out) == (0, True, True, True), out
    code, out, _ = fovea("judge", "leaderboard")
    assert (code, "overlap" in out, "query-lift" in out) == (0, True, True), out
    _, out, _ = fovea("judge", "templates")
    assert "few-shot" in out
    _, out, _ = fovea("judge", "templates", "direct", "--query", "what is tea")
    assert "what is tea" in out


@pytest.mark.parametrize(("words", "wanted"), [
    (["agreement", "none.qrels", "none.qrels"], 4), (["agreement", "{bad}", "{bad}"], 3),
    (["batch", "--topics", "{bad}"], 3), (["templates", "nope"], 4), (["calibrate", "{bad}", "{bad}"], 3),
    (["leaderboard", "--name", "nope"], 4), (["agreement", "{bad}.gz", "{bad}"], 3),
])  # fmt: skip
def test_a_mistake_is_one_line_and_an_exit_code_of_its_kind(fovea, tmp_path, words, wanted):
    bad = tmp_path / "bad.txt"
    bad.write_text("this is not a file of labels\n")
    Path(f"{bad}.gz").write_bytes(b"not gzip")
    code, out, err = fovea("judge", *(word.format(bad=bad) for word in words))
    assert (code, out, len([line for line in err.splitlines() if line.strip()])) == (wanted, "", 1), err


def test_a_judge_is_called_better_or_not_and_the_exit_code_says_so(fovea, files):
    common = ["judge", "trust", files / "qrels.txt"]
    for form in ([], CSV):
        code, *told = fovea(*common, files / "judgements/query-lift.jsonl", *texts(files), "--no-embedding", *form)
        assert (code, "better than every baseline" in told[bool(form)], "bm25" in told[0]) == (0, True, True), told
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


def test_systems_are_compared_in_sentences_scores_corrected_and_labels_planned(fovea, files, tmp_path):
    code, out, err = fovea("judge", "significance", files / "qrels.txt", *runs(files), "--correction", "max-t", *CSV)
    assert (code, "max-t over 3 comparisons" in err, out.count("\n")) == (0, True, 4), err
    code, out, _ = fovea("judge", "significance", files / "qrels.txt", *runs(files), "--baseline", "bm25", "--json")
    assert {row["second"] for row in json.loads(out)["comparisons"]} == {"bm25"}
    sample = {pair: grade for pair, grade in MINI.labels.items() if int(pair[0]) <= 10}
    (tmp_path / "human.txt").write_text(format_qrels(sample))
    given = [tmp_path / "human.txt", files / "judgements/query-lift.jsonl", *runs(files)]
    code, out, err = fovea("judge", "corrected", *given, *CSV)
    assert (code, "prediction-powered over 10 queries" in err, "bm25" in out) == (0, True, True), err
    code, out, err = fovea("judge", "budget", *given, "-w", "0.05", "--between", "bm25", "overlap", "--total", "400")
    assert (code, "bm25 − overlap" in out) == (0, True), err
    assert "\noverlap," in fovea("judge", "budget", *given, "-w", "0.05", *CSV)[1]
    code, out, _ = fovea("judge", "budget", *given, "-w", "0.05", "--json")
    assert len(json.loads(out)["plans"]) == 3


def test_a_collection_of_cranfields_form_is_imported_in_one_command(fovea, tmp_path):
    (tmp_path / "docs").write_bytes(b".I 1\n.T\nwings\n.W\nlift of a wing at \xa35\n.I 2\n.W\nheat of a plate\n")
    (tmp_path / "topics").write_text(".I 001\n.W\nlift of a wing\n.I 004\n.W\nheat of a wing\n", "utf-16")
    (tmp_path / "rel").write_text("1 1 1\n2 2 3\n")
    sources = [tmp_path / name for name in ("docs", "topics", "rel")]
    code, _, err = fovea("judge", "import", *sources, "-o", tmp_path / "out", "--others", "1")
    told = ("by position", "read as Windows-1252.", "topics is not UTF-8; it was read as UTF-16.")
    assert (code, [text for text in told if text not in err]) == (0, []), err
    assert json.loads((tmp_path / "out/passages.jsonl").read_text().splitlines()[0])["text"].endswith("at £5")
    assert read_qrels(tmp_path / "out/qrels.txt") == {("1", "1"): 3, ("2", "2"): 1, ("2", "1"): 0}
    code, _, err = fovea("judge", "import", *sources, "-o", tmp_path / "out", "--grade", "1=2", "--grade", "3=0")
    assert (code, read_qrels(tmp_path / "out/qrels.txt")) == (0, {("1", "1"): 2, ("2", "2"): 0}), err
    assert fovea("judge", "import", *sources, "-o", tmp_path / "out", "--grade", "x")[0] == 2


def test_preferences_show_the_bias_of_a_model_that_does_not_choose(fovea, files, judging, monkeypatch):
    monkeypatch.setattr(judging.model, "say", lambda _: "A")
    code, _, err = fovea("judge", "preferences", *texts(files), "--reference", files / "qrels.txt", "-n", "10", *CSV)
    assert (code, "0 of 10 comparisons" in err) == (0, True), err


@pytest.mark.parametrize(("what", "figure"), [("nuggets", "vital_recall"), ("support", "faithfulness")])
def test_answers_are_checked_without_a_language_model(fovea, tmp_path, what, figure):
    (tmp_path / "p.jsonl").write_text(json.dumps({"id": "1", "text": "The moon makes tides. Bread is baked."}))
    (tmp_path / "a.txt").write_text("The moon makes tides [1].")
    given = ["--passages", tmp_path / "p.jsonl", "--answer", tmp_path / "a.txt", "--how", "similarity"]
    code, out, err = fovea("judge", what, "what makes tides", *given, *CSV)
    assert (code, "moon makes tides" in out, figure.replace("_", " ") in err) == (0, True, True), err
    code, out, _ = fovea("judge", what, "what makes tides", *given, "--json")
    assert (code, json.loads(out)[figure]) == (0, 1.0)
