"""How likely the model finds the query after the passage: the judge that works with a model of 135M parameters.

The signal is the mean log-probability of the query's tokens behind the templated prompt, without a leading space; a
template with `lift` takes off what that mean is behind the same prompt with no passage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from services.relevance_judge.judge import EXAMPLE, NO_GRAPH, PAPER, Judge, graded, named, opening, shrinking
from services.relevance_judge.prompt_template import Template, fence, render
from services.relevance_judge.schemas import JudgeIn, Pair, Verdict
from shared.registry import CallContext, Card, Metric

__all__ = ["QueryLikelihood"]

_MEASURED = "the service's mini-collection, 192 pairs, SmolLM2-135M-Instruct"


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
        """One scored prompt, or with `lift` two, turned into a signal and a grade."""
        chosen = self.chosen(request.template)

        def ask(passage: str) -> _Scored:
            return self._scored(chosen, pair.query, passage, request, run)

        found, flags = shrinking(pair.passage, request.passage_chars, ask)
        alone = self._scored(chosen, pair.query, "", request, run) if chosen.lift else None
        tokens = found.tokens + (alone.tokens if alone else 0)
        told: dict[str, Any] = {"template": named(chosen), "llm": found.model, "tokens": tokens}
        if found.mean is None or (alone is not None and alone.mean is None):
            return Verdict(grade=None, valid=False, reason="no_log_probability", flags=flags, **told)
        told["log_likelihood"] = found.mean
        signal = found.mean - (alone.mean or 0.0) if alone else found.mean
        facts = graded(signal, request, named(chosen), found.model)
        return Verdict(**told, **{**facts, "flags": [*facts["flags"], *flags]})

    def _scored(self, chosen: Template, query: str, passage: str, request: JudgeIn, run: CallContext) -> _Scored:
        """The query behind the templated prompt that shows the passage."""
        shown = render(chosen, query, passage, mark=fence(query, passage, request.seed))
        prompt = self.endpoint.tokens(run, model=request.llm, messages=opening(shown))
        tail = self.endpoint.tokens(run, model=request.llm, prompt=query.strip(), add_special_tokens=False)
        told, model = self.endpoint.score([*prompt, *tail], run, model=request.llm, first=len(prompt))
        known = [value for value in told[len(prompt) :] if value is not None and math.isfinite(value)]
        whole = len(tail) > 0 and len(known) == len(tail)
        return _Scored(math.fsum(known) / len(known) if whole else None, model, len(prompt) + len(tail))


@dataclass(frozen=True, slots=True)
class _Scored:
    """Mean log-probability of the query's tokens, None where one has none; who told it, and tokens read."""

    mean: float | None
    model: str
    tokens: int
