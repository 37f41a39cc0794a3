"""Forms of public test collections: records of documents and topics, and relevance lines; a first line names the form.

Known are the forms of Cranfield, CISI, MED, CACM and ADI (`.I .T .W`), NPL (a number, text, `/`), LISA (`Document 1`,
and topics that end in `#`), TIME (`*TEXT`, `*FIND`), TREC (`<DOC>`, `<top>`), BEIR (JSON lines, a table) and MS MARCO
(an id, a tab, text).
"""

import html
import re
from collections.abc import Iterator, Sequence
from typing import Any

from fovea.errors import Malformed
from services.relevance_judge.batches.pair_selection import TABLE_HEAD
from services.relevance_judge.parsing.label_formats import number_lines, parse_json_lines

Fields = dict[str, str]
Row = tuple[str, str, int | str]
"""Topic, document, and a code; the code is text where it already is a grade."""

RELEVANT = "2"
"""Grade of a document that is called relevant without saying how much."""
FORMS = "Cranfield's `.I id`, `.W`, text; NPL's, LISA's, TIME's and TREC's; JSON lines with `_id` and `text`; tables"

_TAG = re.compile(r"<[/!?]?[A-Za-z][^<>]{0,40}>")
_DOCUMENT = re.compile(r"<DOC(?:\s[^<>]{0,200})?>", re.IGNORECASE)
_ID_KEYS, _TEXT_KEYS = ("_id", "id", "doc_id", "docid", "query_id", "qid"), ("text", "contents", "query", "passage")
_LABELS = re.compile("^(Number|Topic|Description|Narrative):", re.IGNORECASE)


def parse_records(text: str, source: str) -> dict[str, Fields]:
    """Records by id, in the order of the file: {id: {"T": title, "W": text}}; other letters where the form has them.

    Raises Malformed: the form is not known, there is no record, or an id comes twice.
    """
    records: dict[str, Fields] = {}
    for name, fields in _iter_records(clean_text(text), source):
        if len(name.split()) != 1:
            raise Malformed(f"{source} have a record with the id {name[:60]!r}; an id is one word.")
        if name in records:
            raise Malformed(f"The id {name} comes again in {source}.")
        records[name] = {letter: " ".join(part.split()) for letter, part in fields.items()}
    if not records:
        raise Malformed(f"{source} hold no records; known forms are {FORMS}.")
    return records


def _iter_records(text: str, source: str) -> Iterator[tuple[str, Fields]]:
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    if first.startswith("{"):
        return _json_records(text, source)
    if first.startswith("<"):
        return _trec_records(text)
    if first.startswith(("*TEXT", "*FIND")):
        parts = re.split(r"^\*(?:TEXT|FIND).*\n", text.partition("\n*STOP")[0], flags=re.MULTILINE)[1:]
        return ((str(place), {"W": part}) for place, part in enumerate(parts, 1))  # labels count texts by position
    if re.match(r"Document\s+\d+", first):
        parts = re.split(r"^\**\n?^Document[ \t]+(\d+)[ \t]*$", text, flags=re.MULTILINE)
        return ((name, _titled(part.strip().rstrip("*"))) for name, part in zip(parts[1::2], parts[2::2], strict=True))
    if first.isdecimal():
        return _numbered_records(text)
    return _table_records(text) if re.match(r"[^.\s]\S*\t", first) else _cranfield_records(text, source)


def clean_text(text: str) -> str:
    """A file's text with line ends of today, less a byte-order mark and the end-of-file sign of DOS."""
    return re.sub("\r\n?", "\n", text).removeprefix("\ufeff").rstrip("\x1a \n") + "\n"


def _cranfield_records(text: str, source: str) -> Iterator[tuple[str, Fields]]:
    name, fields, letter = "", dict[str, list[str]](), ""
    for number, line in enumerate(text.split("\n"), 1):
        if start := re.fullmatch(r"\.I\s+(\S+)\s*", line):
            if name:
                yield name, {key: "\n".join(lines) for key, lines in fields.items()}
            name, fields, letter = start[1], {}, ""
        elif (found := re.fullmatch(r"\.([A-Z])\s*", line)) and name:
            letter = found[1]
            fields.setdefault(letter, [])
        elif letter:
            fields[letter].append(line)
        elif line.strip():
            raise Malformed(f"Line {number} of {source} stands outside a record; known forms are {FORMS}.")
    if name:
        yield name, {key: "\n".join(lines) for key, lines in fields.items()}


def _json_records(text: str, source: str) -> Iterator[tuple[str, Fields]]:
    for _, row in parse_json_lines(text, source):
        name, title, body = (_first_of(row, keys) for keys in (_ID_KEYS, ("title",), _TEXT_KEYS))
        yield name, {"T": title, "W": body}


def _first_of(row: dict[str, Any], keys: Sequence[str]) -> str:
    """The first value that a row has under one of the keys; no text where it has none."""
    return str(next((row[key] for key in keys if row.get(key) is not None), ""))


def _table_records(text: str) -> Iterator[tuple[str, Fields]]:
    """Lines of an id, a tab and text, under a head or none."""
    for number, line in number_lines(text):
        if number > 1 or not TABLE_HEAD.fullmatch(line):
            name, _, body = line.partition("\t")
            yield name, {"W": body}


def _numbered_records(text: str) -> Iterator[tuple[str, Fields]]:
    """A number, and lines up to one that is `/` (NPL) or ends in `#` (LISA)."""
    name, lines = "", list[str]()
    for line in text.split("\n"):
        stripped = line.strip()
        if not name:
            name = stripped
        elif stripped == "/" or stripped.endswith("#"):
            yield name, {"W": "\n".join([*lines, stripped.rstrip("/#")])}
            name, lines = "", []
        else:
            lines.append(stripped)


def _trec_records(text: str) -> Iterator[tuple[str, Fields]]:
    """Documents by `<DOCNO>` with all their text, topics by `<num>` with their title."""
    for part in _DOCUMENT.split(text)[1:]:
        name = re.search(r"<DOCNO>\s{0,9}([^\s<]{1,200})", part, re.IGNORECASE)
        if name is None:
            raise Malformed(f"A <DOC> has no <DOCNO>: {' '.join(part[:200].split())[:60]!r}.")
        yield name[1], {"W": _plain_text(part[: name.start()] + part[name.end() :])}
    for part in re.split("<top>", text, flags=re.IGNORECASE)[1:]:
        parts = re.split("<(num|title|desc|narr)>", part, flags=re.IGNORECASE)
        fields = {
            tag.lower(): _LABELS.sub("", _plain_text(one)) for tag, one in zip(parts[1::2], parts[2::2], strict=True)
        }
        if fields.get("num", "").split():
            yield fields["num"].split()[0], {"W": fields.get("title") or fields.get("desc", "")}


def _plain_text(text: str) -> str:
    return html.unescape(_TAG.sub(" ", text)).strip()


def _titled(text: str) -> Fields:
    """A text whose first paragraph is its title."""
    title, _, rest = text.partition("\n   ")
    return {"T": title, "W": rest}


def parse_relevance(text: str) -> list[Row]:
    """Relevance lines of any of the forms; `Malformed` if a line has another form."""
    text = clean_text(text)
    lines = [(number, line.split()) for number, line in enumerate(text.split("\n"), 1)]
    rows = [(number, fields) for number, fields in lines if fields]
    if any(fields[:1] == ["/"] for _, fields in rows) or re.search(r"^\d+ Relevant Refs:", text, re.MULTILINE):
        return _blocks(rows)
    if rows and _is_head(rows[0][1]):
        return [(row[0], row[-2], str(_integer(row[-1], number))) for number, row in _wide(rows[1:], {3, 4})]
    if any(len(fields) > 4 for _, fields in rows) and all(one.isdecimal() for _, fields in rows for one in fields):
        return [(fields[0], docid, RELEVANT) for _, fields in rows for docid in fields[1:]]
    if all(len(fields) >= 4 and _is_zero(fields[3]) and _is_zero(fields[2]) for _, fields in rows):
        return [(fields[0], fields[1], RELEVANT) for _, fields in rows]
    found: list[Row] = []
    for number, fields in rows:
        if len(fields) == 4:
            found.append((fields[0], fields[2], str(_integer(fields[3], number))))
        else:
            ((_, (qid, docid, code)),) = _wide([(number, fields)], {3})
            found.append((qid, docid, _integer(code, number)))
    return found


def _blocks(rows: list[tuple[int, list[str]]]) -> list[Row]:
    """Lists of documents under the number of their topic, which end in `/` (NPL) or -1 (LISA)."""
    found: list[Row] = []
    topic = ""
    for number, fields in rows:
        if fields[0] in {"Query", "Topic"}:
            topic = fields[-1]
        elif fields[1:3] == ["Relevant", "Refs:"]:
            continue
        elif fields == ["/"]:
            topic = ""
        elif not topic:
            topic = fields[0]
        else:
            documents = [one for one in fields if one not in {"/", "-1"}]
            found += [(topic, str(_integer(one, number)), RELEVANT) for one in documents]
    return found


def _is_head(fields: list[str]) -> bool:
    """Whether a first line names columns, such as `query-id corpus-id score`: none is a number but an iteration."""
    return 3 <= len(fields) <= 5 and not any(re.search(r"\d", one) for one in (fields[0], *fields[2:]))


def _wide(rows: list[tuple[int, list[str]]], widths: set[int]) -> list[tuple[int, list[str]]]:
    for number, fields in rows:
        if len(fields) not in widths:
            raise Malformed(_detail(number))
    return rows


def _integer(text: str, number: int) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise Malformed(_detail(number)) from error


def _detail(number: int) -> str:
    return f"Line {number} of the relevance lines is not of the form `qid docid code` or `qid 0 docid grade`."


def _is_zero(text: str) -> bool:
    try:
        return float(text) == 0
    except ValueError:
        return False
