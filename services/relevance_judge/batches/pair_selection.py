"""Pair selection: a batch judges topics × passages, pooled runs, or given pairs; less those with a label.

Parses the text of files, TREC lines or JSON lines.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fovea.errors import InvalidOption, Malformed
from services.relevance_judge.metrics.agreement import Qrels
from services.relevance_judge.parsing import trec
from services.relevance_judge.parsing.label_formats import number_lines, parse_object

MAX_BATCH_PAIRS, _ID = 200_000, re.compile(r"\S{1,256}")  # an id is stored with each of its pairs
TABLE_HEAD = re.compile(r"(?i)\W?(|q|p|query[_-]?|doc[_-]?)id\W?\t\W?(text|query|passage|question)\W?")  # of a table


@dataclass(frozen=True, slots=True)
class BatchPair:
    """One pair of a batch, with the ids that its label goes out under."""

    qid: str
    docid: str
    query: str
    passage: str


def parse_texts(lines: str, source: str) -> dict[str, str]:
    """Texts by id, from `id<TAB>text` lines or from JSON lines `{"id", "text"}`; for topics also `{"qid", "query"}`.

    A head of a table is skipped. Raises Malformed: a line in neither form, or an id that comes again with another text.
    """
    found: dict[str, str] = {}
    for number, line in number_lines(lines):
        if number == 1 and TABLE_HEAD.fullmatch(line):
            continue
        name, text = (_parse_text_object if line.startswith("{") else _parse_tabbed)(line, number, source)
        _check_id(name, number, source)
        if found.setdefault(name, text) != text:
            raise Malformed(f"Line {number} of {source}: the id {name} comes again with another text.")
    return found


def parse_collection(topics: str, passages: str) -> tuple[dict[str, str], dict[str, str]]:
    """Texts of topics and passages by id, see `parse_texts`."""
    return parse_texts(topics, "topics"), parse_texts(passages, "passages")


def parse_pairs(text: str) -> list[BatchPair]:
    """Pairs from JSON lines `{"qid", "docid", "query", "passage"}`; `Malformed` for others, or two texts of a pair."""
    found: dict[tuple[str, str], BatchPair] = {}
    for number, line in number_lines(text):
        fields = [*map(parse_object(line, number, "pairs").get, ("qid", "docid", "query", "passage"))]
        if not all(isinstance(field, str | int) and str(field).strip() for field in fields):
            raise Malformed(f"Line {number} of pairs lacks qid, docid, query or passage.")
        pair = BatchPair(*map(str, fields))
        _check_id(pair.qid, number, "pairs")
        _check_id(pair.docid, number, "pairs")
        if found.setdefault((pair.qid, pair.docid), pair) != pair:
            raise Malformed(f"Line {number} of pairs has {pair.qid} {pair.docid} again, with another text.")
    _check_count(len(found))
    return list(found.values())


def cross_pairs(topics: Mapping[str, str], passages: Mapping[str, str]) -> list[BatchPair]:
    """Pair every topic with every passage."""
    _check_count(len(topics) * len(passages))
    return [BatchPair(qid, docid, query, text) for qid, query in topics.items() for docid, text in passages.items()]


def pool_runs(runs: trec.Runs, depth: int, topics: Mapping[str, str], passages: Mapping[str, str]) -> list[BatchPair]:
    """Pool each query's first `depth` passages of runs, in trec_eval's order; `InvalidOption` for one without text."""
    found: dict[tuple[str, str], BatchPair] = {}
    for tag, run in runs.items():
        for qid, scores in run.items():
            query = _text_of(qid, topics, f"The run {tag} has the query", "topics")
            for docid in trec.order_passages(scores)[:depth]:
                passage = _text_of(docid, passages, f"The run {tag} has the passage", "passages")
                found.setdefault((qid, docid), BatchPair(qid, docid, query, passage))
    _check_count(len(found))
    return list(found.values())


def drop_labelled(pairs: list[BatchPair], labels: Qrels) -> list[BatchPair]:
    """Drop the pairs that have a label already."""
    return [pair for pair in pairs if (pair.qid, pair.docid) not in labels]


def _check_id(name: str, number: int, source: str) -> None:
    if not _ID.fullmatch(name):
        raise Malformed(f"Line {number} of {source}: the id {name[:80]!r} has more than 256 characters or white space.")


def _text_of(name: str, texts: Mapping[str, str], where: str, field: str) -> str:
    if name not in texts:
        raise InvalidOption(f"{where} {name[:80]}, whose text is not in {field}.", field=field)
    return texts[name]


def _check_count(count: int) -> None:
    if count > MAX_BATCH_PAIRS:
        raise InvalidOption(f"{count:,} pairs; a batch takes at most {MAX_BATCH_PAIRS:,}.", hint="Send it in parts.")


def _parse_tabbed(line: str, number: int, source: str) -> tuple[str, str]:
    name, tab, text = line.partition("\t")
    if not tab or not name.strip() or not text.strip():
        raise Malformed(f"Line {number} of {source} is neither `id<TAB>text` nor a JSON object.")
    return name.strip(), text.strip()


def _parse_text_object(line: str, number: int, source: str) -> tuple[str, str]:
    row = parse_object(line, number, source)
    name = next((row[key] for key in ("id", "qid", "docid") if key in row), None)
    text = next((row[key] for key in ("text", "query", "passage") if isinstance(row.get(key), str)), "")
    if not isinstance(name, str | int) or not text.strip():
        raise Malformed(f"Line {number} of {source} has no id, or no text.")
    return str(name), text
