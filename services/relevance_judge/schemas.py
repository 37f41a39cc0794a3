"""Wire schemas of judging: pairs of query and passage in, one verdict each out. The same for every judge."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from services.relevance_judge.metrics.calibration import Calibration
from services.relevance_judge.metrics.ensembles import EnsembleRule, Rounding, Tie
from services.relevance_judge.prompt_template import load_templates

MAX_PAIRS = 256
UNCALIBRATED = "uncalibrated"
"""Reason and flag of a verdict that has a signal and no grade, as no calibration was given."""
MAX_TEXT_CHARS = 200_000
"""Longest query or passage; longer ones are refused, not cut."""


class StrictModel(BaseModel):
    """A body whose unknown fields are refused, so that a misspelt option does not go unnoticed."""

    model_config = ConfigDict(extra="forbid")


class Pair(BaseModel):
    """A query and a passage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    query: str = Field(min_length=1, max_length=MAX_TEXT_CHARS)
    passage: str = Field(min_length=1, max_length=MAX_TEXT_CHARS)


class JudgeIn(BaseModel):
    """Pairs to judge, and how. Give `pairs`, or one `query` with its `passages`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pairs: tuple[Pair, ...] = Field((), max_length=MAX_PAIRS, description="Queries with their passages.")
    query: str | None = Field(None, description="One query, with its `passages` instead of `pairs`.")
    passages: tuple[str | dict[str, Any], ...] = Field(
        (), max_length=MAX_PAIRS, description="Texts, or candidates whose text is in `doc.segment`."
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
        None, description="Cuts that turn a signal into a grade, or the name of stored ones, `name` or `name@version`."
    )
    price: float | None = Field(None, ge=0, le=1e6, description="Of a million tokens; verdicts then state their cost.")
    passage_chars: int = Field(
        6000, ge=200, le=MAX_TEXT_CHARS, description="Longer passages are cut at the end, flagged `cut`."
    )
    seed: int | None = Field(None, ge=0, lt=2**31, description="Makes delimiters and answers repeatable.")
    rationale: bool = Field(False, description="Return the whole conversation, not only the last answer.")

    @model_validator(mode="before")
    @classmethod
    def _pair_passages(cls, value: Any) -> Any:
        """Turn a query with its passages into pairs, so that judges see one form."""
        if not isinstance(value, dict) or value.get("query") is None or value.get("pairs"):
            return value
        texts = value.get("passages")
        if not isinstance(texts, list | tuple):
            return value
        rest = {key: value for key, value in value.items() if key not in {"query", "passages"}}
        return {**rest, "pairs": [{"query": value["query"], "passage": _candidate_text(item)} for item in texts]}

    @model_validator(mode="after")
    def _something_to_judge(self) -> JudgeIn:
        if not self.pairs:
            raise ValueError("Give pairs, or one query with its passages.")
        if self.query is not None or self.passages:
            raise ValueError("Give either pairs, or one query with its passages.")
        return self


def _candidate_text(item: Any) -> Any:
    """A candidate's text: the candidate itself, or its `doc.segment`."""
    doc = item.get("doc") if isinstance(item, dict) else None
    return doc.get("segment") if isinstance(doc, dict) else item


class Member(BaseModel):
    """A voter of an ensemble: a judge with its template, model and calibration."""

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
        description="Voters: objects, or in short `judge`, `template` or `judge/template`.",
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
    def _parse_short_members(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        return [_parse_member(item) if isinstance(item, str) else item for item in value]


def _parse_member(short: str) -> dict[str, str]:
    judge, slash, template = short.partition("/")
    if slash:
        return {"judge": judge, "template": template}
    return {"template": short} if short.partition("@")[0] in load_templates() else {"judge": short}


class Verdict(BaseModel):
    """The verdict of a judge on one pair.

    `valid` is false where no try gave a grade on the scale; `grade` is then null, or the imputed one.
    """

    grade: int | None
    valid: bool
    reason: str | None = Field(None, description="Why it is not valid, or null.")
    expected: float | None = Field(None, description="Mean of the grades by their probabilities.")
    probabilities: list[float] | None = Field(None, description="Probability of each grade, lowest first.")
    signal: float | None = Field(None, description="Signal that the cuts are applied to.")
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
    tokens: int = Field(0, description="Read and made by a language model, over all tries.")
    cost: float | None = Field(None, description="Cost of the tokens, at the request's price.")
    latency_ms: float = 0.0
    flags: list[str] = Field([], description="`cut`, `imputed`, `truncated`, `uncalibrated`.")


class JudgeOut(BaseModel):
    """Verdicts in the order of the pairs."""

    model: str
    results: list[Verdict]
    invalid: int = Field(description="Pairs whose answers held no valid grade, imputed ones included.")
    uncalibrated: int = Field(0, description="Pairs with a signal and no grade, as no calibration was given.")
    imputed: int
    notes: list[str] = []
