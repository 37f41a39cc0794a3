"""Which pairs a batch judges: topics × passages, the top of runs, or pairs as they come; less those with a label.

Reads the text of files (TREC lines or JSON lines); knows nothing about judges.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from services.relevance_judge.metrics.rankings import order
from services.relevance_judge.parsing import trec
from shared.errors import InvalidOption, Malformed

__all__ = ["MOST_PAIRS", "Asked", "crossed", "holes", "listed", "pooled", "read_texts"]

MOST_PAIRS = 200_000

Labels = Mapping[tuple[str, str], int]


@dataclass(frozen=True, slots=True)
class Asked:
    """One pair of a batch, with the ids that its label goes out under."""

    qid: str
    docid: str
    query: str
    passage: str


def read_texts(text: str, source: str) -> dict[str, str]:
    """Texts by id, from `id<TAB>text` lines or from JSON lines `{"id", "text"}`; for topics also `{"qid", "query"}`.

    Raises:
        Malformed: A line in neither form, or an id that comes again with another text.
    """
    found: dict[str, str] = {}
    for number, line in _filled(text):
        name, told = _object_text(line, number, source) if line.startswith("{") else _tabbed(line, number, source)
        _checked(name, number, source)
        if found.setdefault(name, told) != told:
            raise Malformed(f"Line {number} of {source}: the id {name} comes again with another text.")
    return found


def listed(text: str) -> list[Asked]:
    """Pairs from JSON lines `{"qid", "docid", "query", "passage"}`.

    Raises:
        Malformed: A line is not such an object.
    """
    found = []
    for number, line in _filled(text):
        row = _object(line, number, "pairs")
        fields = [row.get(name) for name in ("qid", "docid", "query", "passage")]
        if not all(isinstance(field, str | int) and str(field).strip() for field in fields):
            raise Malformed(f"Line {number} of pairs lacks qid, docid, query or passage.")
        qid, docid, query, passage = map(str, fields)
        _checked(qid, number, "pairs")
        _checked(docid, number, "pairs")
        found.append(Asked(qid, docid, query, passage))
    return _bounded(found)


def crossed(topics: Mapping[str, str], passages: Mapping[str, str]) -> list[Asked]:
    """Every topic with every passage."""
    if len(topics) * len(passages) > MOST_PAIRS:
        raise _too_many(len(topics) * len(passages))
    return [Asked(qid, docid, query, text) for qid, query in topics.items() for docid, text in passages.items()]


def pooled(runs: trec.Runs, depth: int, topics: Mapping[str, str], passages: Mapping[str, str]) -> list[Asked]:
    """The union over runs of each query's first `depth` passages, with trec_eval's order.

    Raises:
        InvalidOption: A run names a query or passage whose text is not there.
    """
    found: dict[tuple[str, str], Asked] = {}
    for tag, run in runs.items():
        for qid, scores in run.items():
            query = _text_of(qid, topics, f"The run {tag} has the query", "topics")
            for docid in order(scores)[:depth]:
                passage = _text_of(docid, passages, f"The run {tag} has the passage", "passages")
                found.setdefault((qid, docid), Asked(qid, docid, query, passage))
    return _bounded(list(found.values()))


def holes(pairs: list[Asked], labels: Labels) -> list[Asked]:
    """The pairs that have no label yet."""
    return [pair for pair in pairs if (pair.qid, pair.docid) not in labels]


def _checked(name: str, number: int, source: str) -> None:
    if len(name.split()) != 1:
        detail = f"Line {number} of {source}: the id {name[:80]!r} holds white space, which TREC files can't."
        raise Malformed(detail)


def _text_of(name: str, texts: Mapping[str, str], told: str, field: str) -> str:
    if name not in texts:
        raise InvalidOption(f"{told} {name[:80]}, whose text is not in {field}.", field=field)
    return texts[name]


def _bounded(pairs: list[Asked]) -> list[Asked]:
    if len(pairs) > MOST_PAIRS:
        raise _too_many(len(pairs))
    return pairs


def _too_many(count: int) -> InvalidOption:
    return InvalidOption(f"{count:,} pairs; a batch takes at most {MOST_PAIRS:,}.", hint="Send it in parts.")


def _tabbed(line: str, number: int, source: str) -> tuple[str, str]:
    name, tab, told = line.partition("\t")
    if not tab or not name.strip() or not told.strip():
        raise Malformed(f"Line {number} of {source} is neither `id<TAB>text` nor a JSON object.")
    return name.strip(), told.strip()


def _object_text(line: str, number: int, source: str) -> tuple[str, str]:
    row = _object(line, number, source)
    name = next((row[key] for key in ("id", "qid", "docid") if key in row), None)
    told = next((row[key] for key in ("text", "query", "passage") if isinstance(row.get(key), str)), "")
    if not isinstance(name, str | int) or not told.strip():
        raise Malformed(f"Line {number} of {source} has no id, or no text.")
    return str(name), told


def _object(line: str, number: int, source: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"Line {number} of {source} is not JSON.") from error
    if not isinstance(row, dict):
        raise Malformed(f"Line {number} of {source} is not a JSON object.")
    return row


def _filled(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line.strip("\r")
