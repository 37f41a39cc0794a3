"""Ensemble judge: several judges give each pair a vote or a signal, and a stated rule makes one grade of them.

Members are found by the package scan, so a judge in a new file can vote at once.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from fovea.errors import InvalidOption, NotFound
from services.relevance_judge.judge import EXAMPLE, NO_GRAPH, PAPER, Judge, apply_calibration
from services.relevance_judge.metrics.ensembles import NO_VOTE, EnsembleRule, combine_votes
from services.relevance_judge.prompt_template import get_template, make_fence
from services.relevance_judge.schemas import UNCALIBRATED, EnsembleIn, JudgeIn, Member, Pair, Verdict
from shared.registry import CallContext, Card
from shared.registry.discovery import servables


class Ensemble(Judge[EnsembleIn]):
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
    In: ClassVar[type[JudgeIn]] = EnsembleIn
    default: ClassVar[str] = "direct"
    kinds: ClassVar[tuple[str, ...]] = ()

    def list_template_ids(self, request: EnsembleIn) -> tuple[str, ...]:
        members = self._members(request)
        return tuple(name for judge, own_request in members for name in judge.list_template_ids(own_request))

    def resolve_calibrations(self, request: EnsembleIn, tenant: str) -> EnsembleIn:
        members = tuple(
            member.model_copy(update={"calibration": self.load_calibration(member.calibration, tenant)})
            for member in request.members
        )
        return super().resolve_calibrations(request.model_copy(update={"members": members}), tenant)

    def verdict(self, pair: Pair, request: EnsembleIn, run: CallContext) -> Verdict:
        verdicts = [judge.verdict(pair, own_request, run) for judge, own_request in self._members(request)]
        template = ",".join(one.template for one in verdicts)
        llm = ",".join(dict.fromkeys(one.llm or "" for one in verdicts))
        if request.combine == "signals":
            facts = _combine_signals(verdicts, request, template, llm)
        else:
            facts = _combine_votes(verdicts, request.combine, request, pair)
        flags = {flag for one in verdicts for flag in one.flags} | {*facts.pop("flags", ())}
        if request.combine == "signals":
            flags -= {UNCALIBRATED} if facts["valid"] else set()
        return Verdict(
            **facts,
            votes=[one.grade for one in verdicts],
            signals=[one.signal for one in verdicts],
            llm=llm,
            template=template,
            attempts=max(one.attempts for one in verdicts),
            tokens=sum(one.tokens for one in verdicts),
            flags=sorted(flags),
            rationale=[answer for one in verdicts for answer in one.rationale or ()] if request.rationale else None,
        )

    def _members(self, request: EnsembleIn) -> list[tuple[Judge, JudgeIn]]:
        kinds = servables("relevance-judge").items()
        known = {name: kind for name, kind in kinds if issubclass(kind, Judge) and not issubclass(kind, Ensemble)}
        members: list[tuple[Judge, JudgeIn]] = []
        for member in request.members:
            name = member.judge or _judge_for_template(member, known)
            if name not in known:
                detail = f"There is no judge {name!r} that can vote; known are {', '.join(known)}."
                raise NotFound(detail, field="members")
            own = {"template": member.template, "llm": member.llm or request.llm, "calibration": member.calibration}
            members.append((known[name](self.client, self.objects), request.model_copy(update=own)))
        return members


def _judge_for_template(member: Member, known: Mapping[str, type[Judge]]) -> str:
    if member.template is None:
        raise InvalidOption("A member names neither judge nor template.", field="members")
    kind = get_template(member.template).kind
    return next(name for name, judge in known.items() if kind in judge.kinds)


def _combine_votes(verdicts: list[Verdict], how: EnsembleRule, request: EnsembleIn, pair: Pair) -> dict[str, Any]:
    votes, weights = [[one.grade] for one in verdicts], [one.weight for one in request.members]
    seed = int(make_fence(pair.query, pair.passage, request.seed or 0), 16)  # each pair draws for itself
    (grade,) = combine_votes(votes, how, tie=request.tie, rounding=request.rounding, weights=weights, seed=seed)
    if grade == NO_VOTE:
        is_bare = all(one.reason == UNCALIBRATED for one in verdicts)
        return {"grade": None, "valid": False, "reason": UNCALIBRATED if is_bare else "no_valid_vote"}
    return {"grade": grade, "valid": True}


def _combine_signals(verdicts: list[Verdict], request: EnsembleIn, template: str, llm: str) -> dict[str, Any]:
    """Grade the weighted mean of standardised signals; a grade that was read off an answer counts as a signal."""
    scores, weights = [], [member.weight for member in request.members]
    for one, member in zip(verdicts, request.members, strict=True):
        signal = one.signal if one.signal is not None else one.grade
        if signal is None or not math.isfinite(signal):
            return {"grade": None, "valid": False, "reason": "no_signal"}
        if member.calibration is None or isinstance(member.calibration, str):
            detail = "Signals are added in standard deviations, which come from the calibration of each member."
            raise InvalidOption(detail, hint="Give every member a calibration.", field="members")
        scores.append(member.calibration.standardise(signal))
    if not sum(weights):
        raise InvalidOption("The weights of all members are 0.", field="members")
    mean = math.fsum(weight * score for weight, score in zip(weights, scores, strict=True)) / math.fsum(weights)
    return apply_calibration(mean, request, template, llm)
