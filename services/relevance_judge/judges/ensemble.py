"""Several templates vote on each pair; the votes become one grade by a stated rule."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel

from services.relevance_judge.ensembles import NO_VOTE, average, majority, median
from services.relevance_judge.judge import EXAMPLE, NO_GRAPH, PAPER, Judge, named
from services.relevance_judge.judges.prompted_grade import asked
from services.relevance_judge.wire import EnsembleIn, JudgeIn, Pair, Verdict
from shared.registry import Card, Run

__all__ = ["Ensemble"]


class Ensemble(Judge):
    """Grades by vote of prompted templates."""

    card: ClassVar[Card] = Card(
        name="ensemble", task="judge", paper=PAPER, licence="Apache-2.0",
        summary="Lets several prompts grade each pair and combines their votes by majority, average or median.",
        notes=(
            "Kappa prefers the majority, alpha the average. Votes that are invalid are left out and shown.",
            NO_GRAPH,
        ),
        example=EXAMPLE,
    )  # fmt: skip
    In: ClassVar[type[BaseModel]] = EnsembleIn
    default: ClassVar[str] = "direct"
    kinds: ClassVar[tuple[str, ...]] = ("prompted-grade",)

    def verdict(self, pair: Pair, request: JudgeIn, run: Run) -> Verdict:
        """Ask each template and count."""
        assert isinstance(request, EnsembleIn)  # noqa: S101  # the platform validates requests by `In`
        members = [self.chosen(name) for name in request.templates]
        found = [asked(self, member, pair, request, run) for member in members]
        votes = [one.grade for one in found]
        grade = _combined([[vote] for vote in votes], request)
        facts: dict[str, Any] = {"grade": grade, "valid": True} if grade != NO_VOTE else {"grade": None, "valid": False}
        return Verdict(
            **facts, reason=None if facts["valid"] else "no_valid_vote", votes=votes, llm=found[0].llm,
            template=",".join(map(named, members)), attempts=max(one.attempts for one in found),
            tokens=sum(one.tokens for one in found), flags=sorted({flag for one in found for flag in one.flags}),
            rationale=[answer for one in found for answer in one.rationale or ()] if request.rationale else None,
        )  # fmt: skip


def _combined(votes: list[list[int | None]], request: EnsembleIn) -> int:
    if request.combine == "majority":
        return majority(votes, tie=request.tie, seed=request.seed or 0)[0]
    return (average(votes, rounding=request.rounding) if request.combine == "average" else median(votes))[0]
