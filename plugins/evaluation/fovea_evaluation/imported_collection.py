"""A public test collection in our own form, from its three files in any of the known forms (`collection_forms`).

Two traps of the Cranfield files are handled and reported: relevance lines number the topics by position, while `.I` of
the topics skips numbers; and codes rise as relevance falls.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fovea.errors import Malformed
from fovea_evaluation.collection_forms import Row, parse_records, parse_relevance
from services.relevance_judge.parsing.trec import MAX_GRADE

CRANFIELD_GRADES: Mapping[int, int] = {1: 3, 2: 2, 3: 1, 4: 1, 5: 0}
"""Code of the collection's own readme → grade: complete answer, high relevance, background, minimum interest, none."""


@dataclass(frozen=True)
class ImportedCollection:
    """A collection in our own form.

    Attributes:
        topics: {qid: text}; passages: {docid: text}, title first.
        labels: {(qid, docid): grade}, also of documents that have no text, which no system can find.
        notes: Decisions made on the way.
    """

    topics: dict[str, str]
    passages: dict[str, str]
    labels: dict[tuple[str, str], int]
    notes: list[str] = field(default_factory=list)


def parse_collection(
    documents: str, topics: str, relevance: str, *, grades: Mapping[int, int] | None = None
) -> ImportedCollection:
    """Read the three files of a collection; texts of passages and topics are their title and text.

    Relevance lines are `qid docid code`, `qid 0 docid grade` (TREC), `qid docid 0 0` (relevant, no grade), or lists.
    `grades` are those of codes; lines of other codes are left out and counted in a note. Left out, codes of `.I` files
    are Cranfield's, and those of other forms are grades already. Raises Malformed if a file has no records or lines, a
    line has another form, no line names a document, a topic is not known, or a grade is beyond any scale.
    """
    notes: list[str] = []
    passages = _texts(documents, "documents", notes)
    queries = _texts(topics, "topics", notes)
    rows = parse_relevance(relevance)
    if not rows:
        raise Malformed("There is no relevance line.")
    if not any(docid in passages for _, docid, _ in rows):
        raise Malformed(f"No relevance line names a document that there is; the first names {rows[0][1]!r}.")
    may_count = topics.lstrip("\ufeff\r\n ").startswith(".I")
    if grades is None:
        grades = CRANFIELD_GRADES if may_count else {code: code for _, _, code in rows if isinstance(code, int)}
    names = _topic_names([qid for qid, _, _ in rows], queries, notes, may_count=may_count)
    return ImportedCollection(queries, passages, _grade_rows(rows, names, grades, passages, notes), notes)


def _grade_rows(
    rows: Sequence[Row],
    names: Mapping[str, str],
    grades: Mapping[int, int],
    passages: Mapping[str, str],
    notes: list[str],
) -> dict[tuple[str, str], int]:
    """Labels of relevance lines; of two of a pair the higher one."""
    labels: dict[tuple[str, str], int] = {}
    odd: dict[int, int] = {}
    absent: dict[str, int] = {}
    twice: dict[tuple[str, str], None] = {}
    for qid, docid, code in rows:
        grade = code if isinstance(code, str) else grades.get(code)
        if grade is None:
            odd[int(code)] = odd.get(int(code), 0) + 1
            continue
        if abs(int(grade)) > MAX_GRADE:
            raise Malformed(f"The grade {grade} of {qid} {docid} lies beyond ±{MAX_GRADE}.")
        if docid not in passages:
            absent[docid] = absent.get(docid, 0) + 1
        pair = (names[qid], docid)
        if labels.get(pair, int(grade)) != int(grade):
            twice[pair] = None
        labels[pair] = max(labels.get(pair, int(grade)), int(grade))
    if twice:
        named = ", ".join(" ".join(pair) for pair in list(twice)[:5])
        notes.append(f"{len(twice)} pairs are labelled twice with different grades ({named}); the higher one was kept.")
    used = sorted({code for _, _, code in rows if isinstance(code, int) and code in grades})
    if any(grades[code] != code for code in used):
        became = ", ".join(f"{code} → {grades[code]}" for code in used)
        notes.append(f"Codes of the relevance lines became grades: {became}. Give others if yours rise with relevance.")
    for code, count in sorted(odd.items()):
        notes.append(f"{count} relevance lines have the code {code}, which has no grade; they were left out.")
    if absent:
        lines, named = sum(absent.values()), ", ".join(list(absent)[:5])
        notes.append(f"{lines} relevance lines name documents without a text ({named}); their labels were kept.")
    return labels


def _texts(text: str, source: str, notes: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    empty = []
    for name, record in parse_records(text, source).items():
        title, body = record.get("T", ""), record.get("W", "")
        joined = body if body.startswith(title) else f"{title} {body}".strip()
        if joined:
            found[name] = joined
        else:
            empty.append(name)
    if not found:
        raise Malformed(f"None of the {source} has a text.", hint="JSON lines have it in `text` or `title`.")
    if empty:
        notes.append(f"{len(empty)} of the {source} have no text and were left out: {', '.join(empty[:5])}.")
    return found


def _topic_names(used: list[str], queries: dict[str, str], notes: list[str], *, may_count: bool) -> dict[str, str]:
    """Topic id of each id in the relevance lines: itself, or without zeros in front, or by position."""
    ids = list(queries)
    plain = {_drop_zeros(name): name for name in ids}
    is_consecutive = [_drop_zeros(name) for name in ids] == [str(place) for place in range(1, len(ids) + 1)]
    is_place = all(qid.isdecimal() and len(qid) < 10 and 0 < int(qid) <= len(ids) for qid in used)
    is_lost = any(_drop_zeros(qid) not in plain for qid in used)  # ids that there all are mean themselves
    if may_count and is_place and is_lost and not is_consecutive:
        notes.append("The topics' ids skip numbers, so the relevance lines were read as counting topics by position.")
        renamed = {str(place): text for place, text in enumerate(queries.values(), 1)}
        queries.clear()
        queries.update(renamed)
        return {qid: _drop_zeros(qid) for qid in used}
    names = {qid: qid if qid in queries else plain.get(_drop_zeros(qid), "") for qid in used}
    if unknown := sorted(qid for qid, name in names.items() if not name):
        raise Malformed(f"The relevance lines name the topic {unknown[0]!r}, which the topics do not hold.")
    return names


def _drop_zeros(qid: str) -> str:
    return qid.lstrip("0") or qid
