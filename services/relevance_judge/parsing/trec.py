"""TREC files: reads and writes qrels, runs and topics, plain or gzipped. Ids are opaque strings."""

import gzip
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from fovea.errors import InvalidOption, Malformed

MAX_GRADE = 1000
"""Beyond it, in either direction, no scale of relevance goes."""

Runs = dict[str, dict[str, dict[str, float]]]


def read_qrels(path: str | Path) -> dict[tuple[str, str], int]:
    """Labels of a qrels file, see `parse_qrels`."""
    return parse_qrels(_read_text(path), Path(path).name)


def parse_qrels(text: str, source: str = "qrels") -> dict[tuple[str, str], int]:
    """Labels of `qid iteration docid grade` lines: {(qid, docid): grade}.

    Raises Malformed, with the line: one without four fields, a grade that is not an integer, or two grades of a pair.
    """
    labels: dict[tuple[str, str], int] = {}
    first_lines: dict[tuple[str, str], int] = {}
    for number, fields in _split_lines(text, source, 4, "qid 0 docid grade"):
        query, _, passage, text_grade = fields
        try:
            grade = int(text_grade)
        except ValueError as error:
            raise Malformed(f"Line {number} of {source}: the grade {text_grade[:40]!r} is not an integer.") from error
        check_grade(grade, number, source)
        pair = (query, passage)
        if labels.setdefault(pair, grade) != grade:
            was = f"line {first_lines[pair]} says {labels[pair]}, line {number} says {grade}"
            raise Malformed(f"The pair {query} {passage} is labelled twice in {source}: {was}.")
        first_lines.setdefault(pair, number)
    return labels


def parse_reference(text: str) -> dict[tuple[str, str], int]:
    """Labels that judges are measured against; see `parse_qrels`. Raises InvalidOption: there are none."""
    if labels := parse_qrels(text, "reference"):
        return labels
    raise InvalidOption("The reference holds no label.", hint="Is it an empty file?", field="reference")


def check_grade(grade: int, number: int, source: str) -> None:
    """Refuse a grade that no scale has; `Malformed` if it is one."""
    if abs(grade) > MAX_GRADE:
        raise Malformed(f"Line {number} of {source}: the grade {str(grade)[:40]} lies beyond ±{MAX_GRADE}.")


def read_runs(path: str | Path) -> Runs:
    """Runs of a file, see `parse_runs`."""
    return parse_runs(_read_text(path), Path(path).name)


def parse_runs(text: str, source: str = "runs") -> Runs:
    """Runs of `qid Q0 docid rank score tag` lines: {tag: {qid: {docid: score}}}. Scores order them, not ranks.

    Raises Malformed: a line without six fields, a score that is not finite; under one tag two of a pair, or two lists.
    """
    runs: Runs = {}
    ranks: dict[tuple[str, str], tuple[str, str]] = {}  # first and last so far, of a query's passages
    for number, fields in _split_lines(text, source, 6, "qid Q0 docid rank score tag"):
        query, _, passage, rank, text_score, tag = fields
        try:
            score = float(text_score)
        except ValueError as error:
            raise Malformed(f"Line {number} of {source}: the score {text_score[:40]!r} is not a number.") from error
        if not math.isfinite(score):
            raise Malformed(f"Line {number} of {source}: the score {text_score[:40]!r} is not a finite number.")
        rows = runs.setdefault(tag, {}).setdefault(query, {})
        first, before = ranks.get((tag, query), (rank, rank))
        what = f"{query} {passage} again, with another score" if passage in rows else f"a second list for {query}"
        if rows[passage] != score if passage in rows else rank == first != before:
            detail = f"Line {number} of {source}: the run {tag} has {what}."
            raise Malformed(detail, hint="Each system needs a tag of its own, the last field of its lines.")
        rows[passage], ranks[tag, query] = score, (first, rank)
    return runs


def order_passages(scores: Mapping[str, float]) -> list[str]:
    """Order the passages of a run as trec_eval does, best first: by score as float32, ties by id descending."""
    return sorted(sorted(scores, reverse=True), key=lambda passage: np.float32(scores[passage]), reverse=True)


def format_qrels(labels: Mapping[tuple[str, str], int]) -> str:
    """Labels as qrels lines."""
    return "".join(f"{query} 0 {passage} {grade}\n" for (query, passage), grade in labels.items())


def format_run(ranked: Mapping[str, Iterable[tuple[str, float]]], tag: str) -> str:
    """Passages with their scores, {qid: best first}, as run lines of one system."""
    return "".join(
        f"{query} Q0 {passage} {rank} {score:.6f} {tag}\n"
        for query, row in ranked.items()
        for rank, (passage, score) in enumerate(row, 1)
    )


def _split_lines(text: str, source: str, count: int, form: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(text.replace("\ufeff", "").splitlines(), 1):
        fields = line.split()
        if fields and len(fields) != count:
            raise Malformed(f"Line {number} of {source} has {len(fields)} fields; the form is `{form}`.")
        if fields:
            yield number, fields


def _read_text(path: str | Path) -> str:
    raw = Path(path).read_bytes()
    try:
        return (gzip.decompress(raw) if str(path).endswith(".gz") else raw).decode("utf8")
    except (UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
        raise Malformed(f"{Path(path).name} can't be read as text: {error}.") from error
