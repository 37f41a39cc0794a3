"""Label formats: a judge's labels as TREC qrels, JSON lines or CSV; JSON lines with their number in errors."""

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from fovea.api.csv_form import format_csv
from fovea.errors import Malformed
from services.relevance_judge.parsing import trec
from services.relevance_judge.schemas import UNCALIBRATED

MEDIA_TYPES = {"qrels": "text/plain", "jsonl": "application/x-ndjson", "csv": "text/csv"}
"""Form → content type of the response."""

RUN_FIELDS = 6

COLUMNS = """
qid docid grade valid reason signal expected answer template llm calibration attempts tokens cost latency_ms flags error
"""


@dataclass(frozen=True)
class LabelSet:
    """Labels of one judge.

    Attributes:
        labels: {(qid, docid): grade}.
        invalid: Pairs that the judge gave no valid grade, as JSON lines can say.
        uncalibrated: Number of pairs with a signal and no grade, for want of a calibration.
        tokens, seconds, cost: Sums over the lines that state them.
    """

    labels: dict[tuple[str, str], int]
    invalid: list[tuple[str, str]] = field(default_factory=list)
    uncalibrated: int = 0
    tokens: int = 0
    seconds: float = 0.0
    cost: float | None = None


def parse_labels(text: str, source: str) -> LabelSet:
    """Labels from qrels lines, or from JSON lines as batches write them.

    Raises Malformed: a line is in neither form, or a pair comes again with another grade.
    """
    if not text.lstrip("\ufeff \t\r\n").startswith("{"):
        return LabelSet(trec.parse_qrels(text, source))
    labels: dict[tuple[str, str], int] = {}
    invalid, rows = [], list(parse_json_lines(text, source))
    for number, row in rows:
        pair, grade = _pair(row, number, source), row.get("grade")
        if row.get("valid") is False and row.get("reason") != UNCALIBRATED:
            invalid.append(pair)
        if grade is None:
            continue
        if not isinstance(grade, int) or isinstance(grade, bool):
            raise Malformed(f"Line {number} of {source}: the grade {str(grade)[:40]!r} is not an integer.")
        trec.check_grade(grade, number, source)
        if labels.setdefault(pair, grade) != grade:
            raise Malformed(f"Line {number} of {source} labels the pair {' '.join(pair)} again, with another grade.")
    costs = [float(row["cost"]) for _, row in rows if _is_number(row.get("cost"))]
    return LabelSet(
        labels,
        invalid,
        uncalibrated=sum(row.get("reason") == UNCALIBRATED for _, row in rows),
        tokens=sum(int(row["tokens"]) for _, row in rows if _is_number(row.get("tokens"))),
        seconds=sum(float(row["latency_ms"]) for _, row in rows if _is_number(row.get("latency_ms"))) / 1000,
        cost=sum(costs) if costs else None,
    )


@dataclass(frozen=True)
class SignalSet:
    """Signals of one judge.

    Attributes:
        signals: {(qid, docid): signal}; a row without a signal counts by its grade.
        grades: {(qid, docid): grade} of the rows that have one; empty for a run.
        template, llm: Their template and model, where all rows name the same.
        rows: The rows with a signal, as they came.
    """

    signals: dict[tuple[str, str], float]
    grades: dict[tuple[str, str], int] = field(default_factory=dict)
    template: str | None = None
    llm: str | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)


def parse_signals(text: str, source: str) -> SignalSet:
    """Signals from JSON lines of batches, from run lines (their scores), or from qrels (their grades).

    Raises Malformed: a line of another form, several systems in a run file, a signal that is not finite, two of a pair.
    """
    first = next((line for line in text.splitlines() if line.strip()), "")
    if not first.lstrip("\ufeff \t").startswith("{"):
        if len(first.split()) != RUN_FIELDS:
            labels = trec.parse_qrels(text, source)
            return SignalSet({pair: float(grade) for pair, grade in labels.items()}, labels)
        runs = trec.parse_runs(text, source)
        if len(runs) > 1:
            raise Malformed(f"{source} holds the runs {', '.join(runs)}; one judge is one run.")
        return SignalSet({(q, d): score for run in runs.values() for q, one in run.items() for d, score in one.items()})
    signals: dict[tuple[str, str], float] = {}
    grades, kept = {}, []
    for number, row in parse_json_lines(text, source):
        pair, grade, signal = _pair(row, number, source), row.get("grade"), row.get("signal")
        if isinstance(grade, int) and not isinstance(grade, bool):
            trec.check_grade(grade, number, source)
            grades[pair] = grade
        if (signal := grade if signal is None else signal) is None:
            continue
        if not _is_number(signal):
            raise Malformed(f"Line {number} of {source}: the signal {str(signal)[:40]!r} is not a finite number.")
        if signals.setdefault(pair, float(signal)) != float(signal):
            raise Malformed(f"Line {number} of {source} has the pair {' '.join(pair)} again, with another signal.")
        kept.append(row)
    return SignalSet(signals, grades, _common(kept, "template"), _common(kept, "llm"), kept)


def _common(rows: Iterable[dict[str, Any]], name: str) -> str | None:
    """The value that all rows share."""
    values = [row.get(name) for row in rows]
    return values[0] if values and isinstance(values[0], str) and values.count(values[0]) == len(values) else None


def format_labels(rows: Iterable[dict[str, Any]], form: str) -> str:
    """Rows with `qid`, `docid` and a verdict's fields, in a form of `MEDIA_TYPES`; qrels hold those with a grade."""
    if form == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if form == "qrels":
        return trec.format_qrels({(r["qid"], r["docid"]): r["grade"] for r in rows if r.get("grade") is not None})
    plain = ({**row, "flags": " ".join(row.get("flags") or ())} for row in rows)
    return format_csv([COLUMNS.split(), *([row.get(name) for name in COLUMNS.split()] for row in plain)])


def parse_json_lines(text: str, source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number and the object of each line that is not empty; see `parse_object`."""
    return ((number, parse_object(line, number, source)) for number, line in number_lines(text))


def number_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of each line that is not empty, less blanks and byte-order marks at its ends."""
    for number, line in enumerate(text.split("\n"), 1):
        if line := line.strip("\ufeff \t\r"):
            yield number, line


def parse_object(line: str, number: int, source: str) -> dict[str, Any]:
    """Parse one line; `Malformed` if it is not a JSON object."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"Line {number} of {source} is not JSON.") from error
    if not isinstance(row, dict):
        raise Malformed(f"Line {number} of {source} is not a JSON object.")
    return row


def _pair(row: dict[str, Any], number: int, source: str) -> tuple[str, str]:
    qid, docid = row.get("qid"), row.get("docid")
    if not all(isinstance(name, str | int) and len(str(name).split()) == 1 for name in (qid, docid)):
        raise Malformed(f"Line {number} of {source} lacks qid or docid, or they hold white space.")
    return str(qid), str(docid)


def _is_number(value: Any) -> bool:
    """Whether a value of JSON is a number that a float holds: not NaN, not infinite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
