"""Collections: TREC files and files of labels, and the small collection in the tree."""

import csv
import gzip
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fovea.errors import Malformed
from loadtests.mini_judgements import RANKERS, build_run
from services.relevance_judge.batches.pair_selection import parse_pairs, parse_texts
from services.relevance_judge.metrics.baselines import bm25, overlap, tokenize
from services.relevance_judge.parsing.label_formats import MEDIA_TYPES, format_labels, parse_labels, parse_signals
from services.relevance_judge.parsing.trec import format_qrels, parse_runs, read_qrels, read_runs
from services.relevance_judge.storage.mini_collection import load_mini_collection


def _file(folder: Path, text: str) -> Path:
    path = folder / "given.txt"
    path.write_text(text)
    return path


def test_white_space_marks_of_windows_opaque_ids_and_repeated_pairs_are_taken(tmp_path):
    assert read_qrels(_file(tmp_path, "1\t0  d1 3\n\n  1 Q0 d2\t-1 \n")) == {("1", "d1"): 3, ("1", "d2"): -1}
    assert read_qrels(_file(tmp_path, "007 0 1e5 1\n")) == {("007", "1e5"): 1}
    assert read_qrels(_file(tmp_path, "1 0 d 2\n1 0 d 2\n")) == {("1", "d"): 2}
    assert read_runs(_file(tmp_path, "1 Q0 d 1 2 t\n1 Q0 d 1 2 t\n")) == {"t": {"1": {"d": 2.0}}}
    mark = "\ufeff"
    assert read_qrels(_file(tmp_path, f"{mark}1 0 a 3\r\n{mark}2 0 a 1\r\n")) == {("1", "a"): 3, ("2", "a"): 1}
    marked = _file(tmp_path, f"{mark}1 Q0 a 1 2 t\n{mark}2 Q0 a 1 2 t\n")
    assert read_runs(marked) == {"t": {"1": {"a": 2}, "2": {"a": 2}}}
    lines = f'{mark}{{"qid": "1", "docid": "a", "grade": 2, "signal": 0.5}}\r\n'
    assert parse_labels(lines, "judge").labels == {("1", "a"): 2}
    assert parse_signals(lines, "judge").signals == {("1", "a"): 0.5}
    topics = f'{mark}1\twhat\r\n\n{mark}{{"qid": 2, "query": "why"}}\n'
    assert parse_texts(topics, "topics") == {"1": "what", "2": "why"}
    assert parse_texts('{"id": "a", "text": "x y"}\r\n', "passages") == {"a": "x y"}
    for ranks in ("1 1 3", "0 0 0"):  # ties, and a tool that writes none
        tied = "".join(f"1 Q0 {name} {rank} 5 t\n" for name, rank in zip("abc", ranks.split(), strict=True))
        assert parse_runs(tied) == {"t": {"1": dict.fromkeys("abc", 5.0)}}
    path = _file(tmp_path, "1 Q0 a 9 0.5 bm25\n1 Q0 b 1 2e-1 bm25\n2 Q0 a 1 7 other\n")
    assert read_runs(path) == {"bm25": {"1": {"a": 0.5, "b": 0.2}}, "other": {"2": {"a": 7.0}}}
    assert parse_texts("1\twhat is  a tab\n", "topics") == {"1": "what is  a tab"}
    for head in ("id\ttext", '"query_id"\t"query"', "\ufeffDocID\tPassage"):  # as tables are exported
        assert parse_texts(f"{head}\n1\tone\nid\ttext\n", "topics") == {"1": "one", "id": "text"}


@pytest.mark.parametrize(("read", "text", "told"), [
    (read_qrels, "1 0 d1\n", "Line 1"), (read_qrels, "1 0 d1 2\n1 0 d2 high\n", "Line 2 .*'high'"),
    (read_qrels, "1 0 d1 2.5\n", "not an integer"),
    (read_qrels, "1 0 d1 2\n\n1 0 d1 3\n", "line 1 says 2, line 3 says 3"),
    *((read_qrels, f"1 0 a {grade}\n", r"Line 1 of .*grade") for grade in ("1001", "-1001", "9" * 40)),
    (read_runs, "1 Q0 a 1 x t\n", "'x' is not a number"), (read_runs, "1 Q0 a 1 0.5\n", "5 fields"),
    *((read_runs, f"1 Q0 a 1 {score} t\n", "finite number") for score in ("nan", "inf", "-inf", "1e999")),
    (read_runs, "1 Q0 a 1 2 t\n1 Q0 a 1 2 other\n1 Q0 a 2 1 t\n", "Line 3 .*run t has 1 a again"),
    (read_runs, "1 Q0 a 1 2 t\n1 Q0 b 2 1 t\n1 Q0 c 1 2 t\n", "Line 3 .*run t has a second list for 1"),
])  # fmt: skip
def test_a_broken_line_is_named(tmp_path, read, text, told):
    with pytest.raises(Malformed, match=told):
        read(_file(tmp_path, text))


@pytest.mark.parametrize(("name", "raw"), [
    ("x.gz", b"plain"), ("x.gz", gzip.compress(b"1 0 a 1\n" * 9, mtime=0)[:30] + b"\xff"), ("x.txt", b"\xff\xfe"),
])  # fmt: skip
def test_what_is_not_text_or_not_gzip_is_malformed(tmp_path, name, raw):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(Malformed, match="can't be read"):
        read_qrels(tmp_path / name)


_ID = st.text(alphabet="abc019-_#é", min_size=1, max_size=6)


@given(st.dictionaries(st.tuples(_ID, _ID), st.integers(-9, 9), max_size=20), st.sampled_from(["", ".gz"]))
def test_what_is_written_is_read_again(tmp_path_factory, labels, suffix):
    path = tmp_path_factory.mktemp("qrels") / f"q.txt{suffix}"
    raw = format_qrels(labels).encode("utf8")
    path.write_bytes(gzip.compress(raw) if suffix else raw)
    assert read_qrels(path) == labels


MINI = load_mini_collection()


@pytest.mark.parametrize("system", sorted(RANKERS))
def test_stored_runs_are_those_of_the_code(system):
    path = MINI.folder / "runs" / f"{system}.trec"
    assert (path.read_text(), [*read_runs(path)]) == (build_run(MINI, system), [system])


def test_words_are_letters_and_digits_and_bm25_prefers_rare_repeated_ones():
    words = ["grösse", "2", "naïve", "vaccine", "glass", "gas"]
    assert tokenize("What is the Größe_2 of naïve vaccines, glass or gas?") == words
    passages = {"rare": "zebra the the", "common": "the the the", "twice": "zebra zebra the"}
    passages["long"] = "zebra " + "x " * 30
    found = bm25("the zebra", passages)
    assert found["twice"] > found["rare"] > found["long"]
    assert bm25("zebra", passages)["common"] == 0


@given(st.text(max_size=40), st.dictionaries(st.sampled_from("abc"), st.text(max_size=60)))
def test_scores_are_never_negative_and_overlap_is_a_share(query, passages):
    assert all(score >= 0 for score in bm25(query, passages).values())
    assert all(0 <= score <= 1 for score in overlap(query, passages).values())


@pytest.mark.parametrize(("text", "words"), [
    ("洪水の原因、2024年", ["洪水", "水の", "の原", "原因", "2024", "年"]),
    ("น้ำท่วม", ["น้", "้ํ", "ํา", "าท", "ท่", "่ว", "วม"]),
    ("हिन्दी में", ["हिन्दी", "में"]), ("Cafe\u0301 Mu\u0308ller ﬁle", ["café", "müller", "file"]),
])  # fmt: skip
def test_words_of_any_script_are_found(text, words):
    assert tokenize(text) == words


def test_labels_go_out_and_come_in_again_in_both_forms_and_a_pair_has_one_signal_and_text():
    rows = [
        {"qid": "1", "docid": "a", "grade": 2, "valid": True},
        {"qid": "1", "docid": "b", "grade": None, "valid": False},
        {"qid": "1", "docid": "c", "error": "gone"},
    ]
    assert parse_labels(format_labels(rows, "qrels"), "x").labels == {("1", "a"): 2}
    found = parse_labels(format_labels(rows, "jsonl"), "x")
    assert (found.labels, found.invalid) == ({("1", "a"): 2}, [("1", "b")])
    reasons = {"reason": '=HYPERLINK("x")', "answer": "-1+cmd|' /C calc'!A0", "error": "-"}
    told = [{"qid": "-1", "docid": "-a", "signal": -0.5, **reasons}]
    head, row = csv.reader(io.StringIO(format_labels(told, "csv")))
    assert head[:3] == ["qid", "docid", "grade"]
    assert [cell for cell in row if cell] == ["-1", "-a", '\'=HYPERLINK("x")', "-0.5", "'-1+cmd|' /C calc'!A0", "-"]
    assert set(MEDIA_TYPES) == {"qrels", "jsonl", "csv"}
    rows = '{"qid": 1, "docid": "a", "signal": 1, "template": ["x"], "llm": {}}\n' * 2
    assert parse_signals(rows, "judge").template is None
    row = '{"qid": "1", "docid": "a", "signal": %s}\n'
    assert parse_signals(row % 0.5 * 2, "judge").signals == {("1", "a"): 0.5}
    with pytest.raises(Malformed, match="Line 2 of judge has the pair 1 a again"):
        parse_signals(row % 0.5 + row % 0.7, "judge")
    pair = '{"qid": "1", "docid": "a", "query": "q", "passage": "%s"}\n'
    assert len(parse_pairs(pair % "text" * 2)) == 1
    with pytest.raises(Malformed, match="Line 2 of pairs has 1 a again"):
        parse_pairs(pair % "text" + pair % "another")


@pytest.mark.parametrize("text", [
    '{"qid": "1"}', '{"qid": "1", "docid": "a", "grade": 1.5}', "{]", '{"qid": "1", "docid": "a", "grade": true}',
    '{"qid": 1, "docid": "a", "grade": 1}\n{"qid": 1, "docid": "a", "grade": 2}', '{"a": 1}\n[1]',
    '{"qid": 1, "docid": "a", "grade": 1000000000000000000000000000000}',
])  # fmt: skip
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
