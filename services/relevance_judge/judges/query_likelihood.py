"""Query-likelihood judge: how probable the query is after the passage. Works with a model of 135M parameters.

The signal is the mean log-probability of the query's tokens behind the templated prompt, without a leading space; a
template with `lift` takes off what that mean is behind the same prompt with no passage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from services.relevance_judge.judge import (
    EXAMPLE,
    NO_GRAPH,
    PAPER,
    Judge,
    apply_calibration,
    build_messages,
    fit_passage,
)
from services.relevance_judge.prompt_template import Template, make_fence, render_prompt
from services.relevance_judge.schemas import JudgeIn, Pair, Verdict
from shared.registry import CallContext, Card, Metric

_MEASURED = "192 synthetic pairs, passages and labels by one language model, SmolLM2-135M-Instruct"


_CUTS = {"cuts": (0.1512, 0.93565, 1.8029), "how": "quantile", "pairs": 192, "queries": 24}
"""For the example: fitted on the whole mini-collection with the model that comes with Fovea; fit your own for yours."""


class QueryLikelihood(Judge):
    """Grades by the probability of the query given the passage."""

    card: ClassVar[Card] = Card(
        name="query-likelihood",
        task="judge",
        paper=PAPER,
        licence="Apache-2.0",
        summary="Measures how likely a language model finds the query after reading the passage.",
        notes=(
            "Needs an endpoint with /tokenize and echoed log-probabilities, and a calibration to give grades.",
            NO_GRAPH,
        ),
        metrics=(
            Metric(name="pair_order", ours=0.856, data=_MEASURED),
            Metric(name="spearman", ours=0.690, data=_MEASURED, note="0.520 without the lift (query-likelihood)."),
            Metric(name="kappa_quadratic", ours=0.680, data=_MEASURED, note="Cuts by label shares, queries left out."),
            Metric(name="kappa", ours=0.375, data=_MEASURED, note="The same cuts; 0.229 without the lift."),
        ),
        example={**EXAMPLE, "calibration": _CUTS},
    )
    default: ClassVar[str] = "query-lift"
    kinds: ClassVar[tuple[str, ...]] = ("query-likelihood",)

    def verdict(self, pair: Pair, request: JudgeIn, run: CallContext) -> Verdict:
        template = self.select_template(request.template)

        def ask(passage: str) -> _QueryScore:
            return self._score(template, pair.query, passage, request, run)

        score, flags = fit_passage(pair.passage, request.passage_chars, ask)
        alone = self._score(template, pair.query, "", request, run) if template.lift else None
        tokens = score.tokens + (alone.tokens if alone else 0)
        facts: dict[str, Any] = {"template": template.pinned_id, "llm": score.model, "tokens": tokens}
        if score.mean is None or (alone is not None and alone.mean is None):
            return Verdict(grade=None, valid=False, reason="no_log_probability", flags=flags, **facts)
        facts["log_likelihood"] = score.mean
        signal = score.mean - (alone.mean or 0.0) if alone else score.mean
        facts |= apply_calibration(signal, request, template.pinned_id, score.model)
        return Verdict(**{**facts, "flags": [*facts["flags"], *flags]})

    def _score(self, template: Template, query: str, passage: str, request: JudgeIn, run: CallContext) -> _QueryScore:
        shown = render_prompt(template, query, passage, mark=make_fence(query, passage, request.seed))
        prompt = self.client.tokenize(run, model=request.llm, messages=build_messages(shown))
        tail = self.client.tokenize(run, model=request.llm, prompt=query.strip(), add_special_tokens=False)
        logprobs, model = self.client.score_tokens([*prompt, *tail], run, model=request.llm, first=len(prompt))
        known = [value for value in logprobs[len(prompt) :] if value is not None and math.isfinite(value)]
        whole = len(tail) > 0 and len(known) == len(tail)
        return _QueryScore(math.fsum(known) / len(known) if whole else None, model, len(prompt) + len(tail))


@dataclass(frozen=True, slots=True)
class _QueryScore:
    """Mean log-probability of the query's tokens, None where one has none; the model, and tokens read."""

    mean: float | None
    model: str
    tokens: int
