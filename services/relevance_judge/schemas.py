"""Judging on the wire: pairs of query and passage in, one verdict each out.

The same for every judge; which options a judge reads, its page says.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from services.relevance_judge.metrics.calibration import Calibration
from services.relevance_judge.metrics.ensembles import Rounding, Tie
from services.relevance_judge.prompt_template import templates

__all__ = ["EnsembleIn", "EnsembleRule", "JudgeIn", "JudgeOut", "Member", "Pair", "Verdict"]

EnsembleRule = Literal["majority", "average", "median"]

MOST_PAIRS = 256
LONGEST = 200_000
"""Characters of a query or passage; longer ones are refused, not cut."""


class Pair(BaseModel):
    """A query and a passage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    query: str = Field(min_length=1, max_length=LONGEST)
    passage: str = Field(min_length=1, max_length=LONGEST)


class JudgeIn(BaseModel):
    """Pairs to judge, and how. Give `pairs`, or one `query` with its `passages`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pairs: tuple[Pair, ...] = Field((), max_length=MOST_PAIRS, description="Queries with their passages.")
    query: str | None = Field(None, description="One query, with its `passages` instead of `pairs`.")
    passages: tuple[str | dict[str, Any], ...] = Field(
        (), max_length=MOST_PAIRS, description="Texts, or candidates whose text is in `doc.segment`."
    )
    template: str | None = Field(None, description="Id of a template, or `id@digest`; left out, the judge's default.")
    llm: str | None = Field(None, description="Language model at the endpoint; left out, its default.")
    retries: int = Field(1, ge=0, le=5, description="Further tries after an answer without a valid grade.")
    impute: int | None = Field(
        None,
        ge=0,
        le=3,
        description="Grade put in where no try gave a valid one; left out, the pair has no grade. "
        "Either way it counts as invalid.",
    )
    calibration: Calibration | str | None = Field(
        None, description="Cuts that turn a signal into a grade, or the name of kept ones, `name` or `name@version`."
    )
    price: float | None = Field(None, ge=0, le=1e6, description="Of a million tokens; verdicts then tell their cost.")
    passage_chars: int = Field(
        6000, ge=200, le=LONGEST, description="Longer passages are cut at the end, flagged `cut`."
    )
    seed: int | None = Field(None, ge=0, lt=2**31, description="Makes marks and answers repeatable.")
    rationale: bool = Field(False, description="Tell the model's whole conversation, not only its last answer.")

    @model_validator(mode="before")
    @classmethod
    def _paired(cls, given: Any) -> Any:
        """Make pairs of a query and its passages, so that judges see one form."""
        if not isinstance(given, dict) or given.get("query") is None or given.get("pairs"):
            return given
        texts = given.get("passages")
        if not isinstance(texts, list | tuple):
            return given
        rest = {key: value for key, value in given.items() if key not in {"query", "passages"}}
        return {**rest, "pairs": [{"query": given["query"], "passage": _text(item)} for item in texts]}

    @model_validator(mode="after")
    def _something_to_judge(self) -> JudgeIn:
        if not self.pairs:
            raise ValueError("Give pairs, or one query with its passages.")
        if self.query is not None or self.passages:
            raise ValueError("Give either pairs, or one query with its passages.")
        return self


def _text(item: Any) -> Any:
    """A candidate's text: the candidate itself, or its `doc.segment`."""
    doc = item.get("doc") if isinstance(item, dict) else None
    return doc.get("segment") if isinstance(doc, dict) else item


class Member(BaseModel):
    """Who votes in an ensemble: a judge with its template, model and calibration."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    judge: str | None = Field(None, description="Left out, the judge that reads the template.")
    template: str | None = Field(None, description="Left out, the judge's default.")
    llm: str | None = Field(None, description="Left out, the request's.")
    calibration: Calibration | str | None = Field(None, description="Of this judge's signal.")
    weight: float = Field(1.0, ge=0, le=1e6, description="In averages and sums of signals.")


class EnsembleIn(JudgeIn):
    """Pairs to judge by several judges, and how their votes or signals become one grade."""

    members: tuple[Member, ...] = Field(
        ("direct", "aspects", "words"),
        min_length=1,
        max_length=8,
        validate_default=True,
        description="Who votes: objects, or in short `judge`, `template` or `judge/template`.",
    )
    combine: EnsembleRule | Literal["signals"] = Field(
        "majority",
        description="How votes become one grade; `signals` adds the members' signals, each in standard "
        "deviations of its calibration, and grades the sum by the request's `calibration`.",
    )
    tie: Tie = Field("average", description="Which grade wins a tied majority.")
    rounding: Rounding = Field("half_up", description="How an average becomes a grade.")

    @field_validator("members", mode="before")
    @classmethod
    def _in_short(cls, given: Any) -> Any:
        if not isinstance(given, list | tuple):
            return given
        return [_member(item) if isinstance(item, str) else item for item in given]


def _member(told: str) -> dict[str, str]:
    judge, slash, template = told.partition("/")
    if slash:
        return {"judge": judge, "template": template}
    return {"template": told} if told.partition("@")[0] in templates() else {"judge": told}


class Verdict(BaseModel):
    """What a judge says of one pair.

    `valid` is false where no try gave a grade on the scale; `grade` is then null, or the imputed one.
    """

    grade: int | None
    valid: bool
    reason: str | None = Field(None, description="Why it is not valid, or null.")
    expected: float | None = Field(None, description="Mean of the grades by their probabilities.")
    probabilities: list[float] | None = Field(None, description="Of each grade, lowest first.")
    signal: float | None = Field(None, description="What the cuts are applied to.")
    log_likelihood: float | None = Field(None, description="Mean log-probability of the query's tokens.")
    answer: str | None = Field(None, description="The model's last answer, as it came.")
    rationale: list[str] | None = None
    votes: list[int | None] | None = Field(None, description="Of an ensemble's members, in their order.")
    signals: list[float | None] | None = Field(None, description="Of an ensemble's members, in their order.")
    template: str = Field(description="`id@digest`.")
    llm: str | None = Field(None, description="The language model that answered.")
    calibration: str | None = Field(
        None, description="The calibration that was used: `name@version:digest`, or its digest."
    )
    attempts: int = 1
    tokens: int = Field(0, description="Read and made, over all tries.")
    cost: float | None = Field(None, description="Of the tokens, at the request's price.")
    latency_ms: float = 0.0
    flags: list[str] = Field([], description="`cut`, `imputed`, `truncated`, `uncalibrated`.")


class JudgeOut(BaseModel):
    """Verdicts in the order of the pairs."""

    model: str
    results: list[Verdict]
    invalid: int = Field(description="Pairs without a valid grade, imputed ones included.")
    imputed: int
    notes: list[str] = []
