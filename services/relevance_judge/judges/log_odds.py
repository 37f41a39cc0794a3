"""Reads the grade off the next token's log-probabilities: expected grade over digits, or the odds of yes against no."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from services.relevance_judge.chat_client import Said
from services.relevance_judge.judge import EXAMPLE, NO_GRAPH, PAPER, Judge, graded, named, opening, shrinking
from services.relevance_judge.prompt_template import fence, render
from services.relevance_judge.schemas import JudgeIn, Pair, Verdict
from shared.errors import InvalidOption
from shared.registry import CallContext, Card

__all__ = ["LogOdds", "expected_grade", "odds"]

YES = ("Yes", " Yes", "yes", " yes", "YES")
NO = ("No", " No", "no", " no", "NO")


class LogOdds(Judge):
    """Grades by next-token log-probabilities."""

    card: ClassVar[Card] = Card(
        name="log-odds",
        task="judge",
        paper=PAPER,
        licence="Apache-2.0",
        summary="Takes the odds of yes against no, or the expected digit, from the model's next-token probabilities.",
        notes=(
            "Needs log-probabilities. The odds of yes-no need a calibration; digits can be graded by rounding.",
            NO_GRAPH,
        ),
        example=EXAMPLE,
    )
    default: ClassVar[str] = "digits"
    kinds: ClassVar[tuple[str, ...]] = ("digits", "yes-no")

    def verdict(self, pair: Pair, request: JudgeIn, run: CallContext) -> Verdict:
        """One token's log-probabilities, turned into a signal and a grade."""
        chosen = self.chosen(request.template)

        def ask(passage: str) -> Said:
            shown = render(chosen, pair.query, passage, mark=fence(pair.query, passage, request.seed))
            return self.endpoint.chat(opening(shown), run, model=request.llm, max_tokens=1, logprobs=True)

        said, flags = shrinking(pair.passage, request.passage_chars, ask)
        if not said.first:
            hint = "Choose prompted-grade for endpoints that don't tell them."
            raise InvalidOption("The endpoint gives no log-probabilities.", hint=hint, field="llm")
        told = {"answer": said.text, "template": named(chosen), "llm": said.model, "tokens": said.tokens}
        if chosen.kind == "yes-no":
            signal, cut = odds(said.first)
            facts = graded(signal, request, named(chosen), said.model)
        else:
            grades = range(chosen.scale.lowest, chosen.scale.highest + 1)
            signal, shares, cut = expected_grade(said.first, grades)
            facts = graded(signal, request, named(chosen), said.model)
            if request.calibration is None:
                facts |= {"grade": math.floor(signal + 0.5), "valid": True, "reason": None}
            facts |= {"expected": signal, "probabilities": shares}
        facts["flags"] = [*facts["flags"], *flags, *(["truncated"] if cut else [])]
        return Verdict(**told, **facts)


def odds(first: Mapping[str, float]) -> tuple[float, bool]:
    """Log P(yes) − log P(no) over their spellings, and whether one was missing from the list.

    A missing spelling counts as the smallest listed log-probability.
    """
    sides = [[first.get(form, min(first.values())) for form in forms] for forms in (YES, NO)]
    return _logsumexp(sides[0]) - _logsumexp(sides[1]), any(form not in first for form in (*YES, *NO))


def expected_grade(first: Mapping[str, float], grades: Sequence[int]) -> tuple[float, list[float], bool]:
    """Mean grade under softmax over the digits, their probabilities, and whether one was missing from the list."""
    found = [first.get(str(grade), min(first.values())) for grade in grades]
    whole = _logsumexp(found)
    shares = [math.exp(value - whole) for value in found]
    mean = math.fsum(grade * share for grade, share in zip(grades, shares, strict=True))
    return mean, shares, any(str(grade) not in first for grade in grades)


def _logsumexp(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(math.fsum(math.exp(value - top) for value in values))
