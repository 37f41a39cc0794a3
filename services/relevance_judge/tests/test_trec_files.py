"""TREC files are read as they are found in the wild, and broken ones are named by line."""

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fovea.errors import Malformed
from services.relevance_judge.parsing.trec import format_qrels, read_qrels, read_runs, read_topics


def _file(folder: Path, text: str) -> Path:
    path = folder / "given.txt"
    path.write_text(text)
    return path


def test_any_white_space_and_blank_lines_are_taken(tmp_path):
    assert read_qrels(_file(tmp_path, "1\t0  d1 3\n\n  1 Q0 d2\t-1 \n")) == {("1", "d1"): 3, ("1", "d2"): -1}


def test_ids_stay_opaque_strings(tmp_path):
    assert read_qrels(_file(tmp_path, "007 0 1e5 1\n")) == {("007", "1e5"): 1}


@pytest.mark.parametrize(
    ("read", "text", "told"),
    [
        (read_qrels, "1 0 d1\n", "Line 1"),
        (read_qrels, "1 0 d1 2\n1 0 d2 high\n", "Line 2 .*'high'"),
        (read_qrels, "1 0 d1 2.5\n", "not an integer"),
        (read_qrels, "1 0 d1 2\n\n1 0 d1 3\n", "line 1 says 2, line 3 says 3"),
        *((read_qrels, f"1 0 a {grade}\n", r"Line 1 of .*grade") for grade in ("1001", "-1001", "9" * 40)),
        (read_runs, "1 Q0 a 1 x t\n", "'x' is not a number"),
        (read_runs, "1 Q0 a 1 0.5\n", "5 fields"),
        *((read_runs, f"1 Q0 a 1 {score} t\n", "finite number") for score in ("nan", "inf", "-inf", "1e999")),
        (read_topics, "1 what\n", "no tab"),
    ],
)
def test_a_broken_line_is_named(tmp_path, read, text, told):
    with pytest.raises(Malformed, match=told):
        read(_file(tmp_path, text))


def test_a_pair_repeated_with_the_same_grade_is_no_error(tmp_path):
    assert read_qrels(_file(tmp_path, "1 0 d 2\n1 0 d 2\n")) == {("1", "d"): 2}


def test_runs_are_read_by_tag_and_the_rank_column_is_ignored(tmp_path):
    path = _file(tmp_path, "1 Q0 a 9 0.5 bm25\n1 Q0 b 1 2e-1 bm25\n2 Q0 a 1 7 other\n")
    assert read_runs(path) == {"bm25": {"1": {"a": 0.5, "b": 0.2}}, "other": {"2": {"a": 7.0}}}


def test_topics_keep_their_text(tmp_path):
    assert read_topics(_file(tmp_path, "1\twhat is  a tab\n")) == {"1": "what is  a tab"}


@pytest.mark.parametrize(
    ("name", "raw"),
    [("x.gz", b"plain"), ("x.gz", gzip.compress(b"1 0 a 1\n" * 9, mtime=0)[:30] + b"\xff"), ("x.txt", b"\xff\xfe")],
)
def test_what_is_not_text_or_not_gzip_is_malformed(tmp_path, name, raw):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(Malformed, match="can't be read"):
        read_qrels(tmp_path / name)


_ID = st.text(alphabet="abc019-_#é", min_size=1, max_size=6)


@given(
    labels=st.dictionaries(st.tuples(_ID, _ID), st.integers(-9, 9), max_size=20), suffix=st.sampled_from(["", ".gz"])
)
def test_what_is_written_is_read_again(tmp_path_factory, labels, suffix):
    path = tmp_path_factory.mktemp("qrels") / f"q.txt{suffix}"
    raw = format_qrels(labels).encode("utf8")
    path.write_bytes(gzip.compress(raw) if suffix else raw)
    assert read_qrels(path) == labels
