"""Several judges give each pair a vote or a signal; these become one grade by a stated rule.

Members are found by the package scan, so a judge in a new file can vote at once. Knows how members are combined; how
each of them judges is its own matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel

from services.relevance_judge.judge import EXAMPLE, NO_GRAPH, PAPER, Judge, graded
from services.relevance_judge.metrics.ensembles import NO_VOTE, average, majority, median
from services.relevance_judge.prompt_template import template
from services.relevance_judge.schemas import EnsembleIn, JudgeIn, Member, Pair, Verdict
from shared.errors import InvalidOption, NotFound
from shared.registry import CallContext, Card
from shared.registry.discovery import servables

__all__ = ["Ensemble"]


class Ensemble(Judge):
    """Grades by the votes or signals of other judges."""

    card: ClassVar[Card] = Card(
        name="ensemble",
        task="judge",
        paper=PAPER,
        licence="Apache-2.0",
        summary="Lets several judges grade each pair and combines their votes, or adds up their signals.",
        notes=(
            "Kappa prefers the majority, alpha the average. Votes that are invalid are left out and shown.",
            "Signals are added in standard deviations of each member's calibration; the sum needs one of its own.",
            NO_GRAPH,
        ),
        example=EXAMPLE,
    )
    In: ClassVar[type[BaseModel]] = EnsembleIn
    default: ClassVar[str] = "direct"
    kinds: ClassVar[tuple[str, ...]] = ()

    def names_of(self, request: JudgeIn) -> tuple[str, ...]:
        """The templates of all members, in their order."""
        return tuple(name for judge, asked in self._members(request) for name in judge.names_of(asked))

    def settled(self, request: JudgeIn) -> JudgeIn:
        """The request with its own and its members' calibrations at hand."""
        assert isinstance(request, EnsembleIn)  # noqa: S101  # the platform validates requests by `In`
        kept = (member.model_copy(update={"calibration": self.cuts(member.calibration)}) for member in request.members)
        return super().settled(request.model_copy(update={"members": tuple(kept)}))

    def verdict(self, pair: Pair, request: JudgeIn, run: CallContext) -> Verdict:
        """Ask each member and combine what they say."""
        assert isinstance(request, EnsembleIn)  # noqa: S101  # as above
        found = [judge.verdict(pair, asked, run) for judge, asked in self._members(request)]
        names = ",".join(one.template for one in found)
        llms = ",".join(dict.fromkeys(one.llm or "" for one in found))
        facts = _summed(found, request, names, llms) if request.combine == "signals" else _voted(found, request)
        flags = {flag for one in found for flag in one.flags} | {*facts.pop("flags", ())}
        if request.combine == "signals":
            flags -= {"uncalibrated"} if facts["valid"] else set()
        return Verdict(
            **facts,
            votes=[one.grade for one in found],
            signals=[one.signal for one in found],
            llm=llms,
            template=names,
            attempts=max(one.attempts for one in found),
            tokens=sum(one.tokens for one in found),
            flags=sorted(flags),
            rationale=[answer for one in found for answer in one.rationale or ()] if request.rationale else None,
        )

    def _members(self, request: JudgeIn) -> list[tuple[Judge, JudgeIn]]:
        """Each member with the request it gets."""
        assert isinstance(request, EnsembleIn)  # noqa: S101  # as above
        found = servables("relevance-judge").items()
        known = {name: kind for name, kind in found if issubclass(kind, Judge) and not issubclass(kind, Ensemble)}
        members: list[tuple[Judge, JudgeIn]] = []
        for member in request.members:
            name = member.judge or _reader(member, known)
            if name not in known:
                detail = f"There is no judge {name!r} that can vote; known are {', '.join(known)}."
                raise NotFound(detail, field="members")
            told = {"template": member.template, "llm": member.llm or request.llm, "calibration": member.calibration}
            members.append((known[name](self.endpoint, self.calibrations), request.model_copy(update=told)))
        return members


def _reader(member: Member, known: Mapping[str, type[Judge]]) -> str:
    """The judge that reads the member's template."""
    if member.template is None:
        raise InvalidOption("A member names neither judge nor template.", field="members")
    kind = template(member.template).kind
    return next(name for name, judge in known.items() if kind in judge.kinds)


def _voted(found: list[Verdict], request: EnsembleIn) -> dict[str, Any]:
    votes = [[one.grade] for one in found]
    if request.combine == "majority":
        grade = majority(votes, tie=request.tie, seed=request.seed or 0)[0]
    elif request.combine == "median":
        grade = median(votes)[0]
    else:
        grade = average(votes, rounding=request.rounding, weights=[one.weight for one in request.members])[0]
    if grade == NO_VOTE:
        return {"grade": None, "valid": False, "reason": "no_valid_vote"}
    return {"grade": grade, "valid": True}


def _summed(found: list[Verdict], request: EnsembleIn, names: str, llms: str) -> dict[str, Any]:
    """The weighted mean of the members' standardised signals; a grade that was read off an answer counts as one."""
    parts, weights = [], [member.weight for member in request.members]
    for one, member in zip(found, request.members, strict=True):
        signal = one.signal if one.signal is not None else one.grade
        if signal is None or not math.isfinite(signal):
            return {"grade": None, "valid": False, "reason": "no_signal"}
        if member.calibration is None or isinstance(member.calibration, str):
            detail = "Signals are added in standard deviations, which the calibration of each member tells."
            raise InvalidOption(detail, hint="Give every member a calibration.", field="members")
        parts.append(member.calibration.standard(signal))
    if not sum(weights):
        raise InvalidOption("The weights of all members are 0.", field="members")
    total = math.fsum(weight * part for weight, part in zip(weights, parts, strict=True)) / math.fsum(weights)
    return graded(total, request, names, llms)
