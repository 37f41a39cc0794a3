"""Log-odds judge: the grade follows from the next token's log-probabilities, over digits or of yes against no."""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from fovea.errors import InvalidOption
from services.relevance_judge.chat_client import ChatReply
from services.relevance_judge.judge import (
    EXAMPLE,
    NO_GRAPH,
    PAPER,
    Judge,
    apply_calibration,
    build_messages,
    fit_passage,
)
from services.relevance_judge.prompt_template import make_fence, render_prompt
from services.relevance_judge.schemas import JudgeIn, Pair, Verdict
from shared.registry import CallContext, Card

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
        template = self.select_template(request.template)

        def ask(passage: str) -> ChatReply:
            shown = render_prompt(template, pair.query, passage, mark=make_fence(pair.query, passage, request.seed))
            return self.client.chat(build_messages(shown), run, model=request.llm, max_tokens=1, logprobs=True)

        reply, flags = fit_passage(pair.passage, request.passage_chars, ask)
        if not reply.first_logprobs:
            hint = "Choose prompted-grade for endpoints that don't return them."
            raise InvalidOption("The endpoint gives no log-probabilities.", hint=hint, field="llm")
        answer = {"answer": reply.text, "template": template.pinned_id, "llm": reply.model, "tokens": reply.tokens}
        if template.kind == "yes-no":
            signal, cut = yes_no_odds(reply.first_logprobs)
            facts = apply_calibration(signal, request, template.pinned_id, reply.model)
        else:
            grades = range(template.scale.lowest, template.scale.highest + 1)
            signal, shares, cut = expected_grade(reply.first_logprobs, grades)
            facts = apply_calibration(signal, request, template.pinned_id, reply.model)
            if request.calibration is None:
                facts |= {"grade": math.floor(signal + 0.5), "valid": True, "reason": None}
            facts |= {"expected": signal, "probabilities": shares}
        facts["flags"] = [*facts["flags"], *flags, *(["truncated"] if cut else [])]
        return Verdict(**answer, **facts)


def yes_no_odds(first: Mapping[str, float]) -> tuple[float, bool]:
    """Log P(yes) − log P(no) over their spellings, and whether one was missing from the list.

    A missing spelling counts as the smallest listed log-probability.
    """
    sides = [[first.get(form, min(first.values())) for form in forms] for forms in (YES, NO)]
    return _logsumexp(sides[0]) - _logsumexp(sides[1]), any(form not in first for form in (*YES, *NO))


def expected_grade(first: Mapping[str, float], grades: Sequence[int]) -> tuple[float, list[float], bool]:
    """Mean grade under softmax over the digits ("2" or " 2", the likelier form), their shares, if one is missing."""
    lead = max(("", " "), key=lambda lead: max(first.get(f"{lead}{grade}", -math.inf) for grade in grades))
    found = [first.get(f"{lead}{grade}", min(first.values())) for grade in grades]
    whole = _logsumexp(found)
    shares = [math.exp(value - whole) for value in found]
    mean = math.fsum(grade * share for grade, share in zip(grades, shares, strict=True))
    return mean, shares, any(f"{lead}{grade}" not in first for grade in grades)


def _logsumexp(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(math.fsum(math.exp(value - top) for value in values))
