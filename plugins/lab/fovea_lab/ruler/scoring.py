"""Scores of RULER-form answers: the share of the references that stand in an answer, or whether any does."""

import re
from collections.abc import Iterable, Sequence
from itertools import starmap

from fovea.errors import InvalidOption
from fovea_lab.ruler.samples.task import TASKS

_CONTROL = re.compile("[\x00-\x1f]")


def clean(text: str) -> str:
    """The text without white space around it, control characters as line breaks."""
    return _CONTROL.sub("\n", text.strip()).strip()


def score(task: str, prediction: str, references: Sequence[str]) -> float:
    """Score of one answer, 0 … 1, by its task's metric.

    Raises:
        InvalidOption: No such task, or no reference, or an empty one.
    """
    if task not in TASKS:
        raise InvalidOption(f"There is no RULER-form task {task!r}; known are {', '.join(TASKS)}.", field="tasks")
    found = _hits(prediction, references)
    return sum(found) / len(found) if TASKS[task].metric == "all" else float(any(found))


def string_match_all(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean share of the references that were found, in percent with two decimals. InvalidOption: There is no answer."""
    return _percent(sum(found) / len(found) for found in starmap(_hits, zip(predictions, references, strict=True)))


def string_match_part(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Share of the answers in which a reference was found, in percent with two decimals; errors as above."""
    return _percent(float(any(found)) for found in starmap(_hits, zip(predictions, references, strict=True)))


def _percent(scores: Iterable[float]) -> float:
    given = list(scores)
    if not given:
        raise InvalidOption("There are no answers to score.", field="predictions")
    return round(100 * sum(given) / len(given), 2)


def _hits(prediction: str, references: Sequence[str]) -> list[bool]:
    if not references or not all(references):
        detail = "A sample needs references, and none may be empty: that would match every answer."
        raise InvalidOption(detail, field="references")
    answer = clean(prediction).lower()
    return [one.lower() in answer for one in references]
