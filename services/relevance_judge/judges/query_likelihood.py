"""How likely the model finds the query after the passage: the judge that works with a model of 135M parameters.

The signal is the mean log-probability of the query's tokens behind the templated prompt, without a leading space.
"""

from __future__ import annotations

import math
from typing import ClassVar

from services.relevance_judge.judge import EXAMPLE, NO_GRAPH, PAPER, Judge, graded, named, opening, shrinking
from services.relevance_judge.template import fence, render
from services.relevance_judge.wire import JudgeIn, Pair, Verdict
from shared.registry import Card, Metric, Run

__all__ = ["QueryLikelihood"]

_MEASURED = "the service's mini-collection, 192 pairs, SmolLM2-135M-Instruct"


class QueryLikelihood(Judge):
    """Grades by the probability of the query given the passage."""

    card: ClassVar[Card] = Card(
        name="query-likelihood", task="judge", paper=PAPER, licence="Apache-2.0",
        summary="Measures how likely a language model finds the query after reading the passage.",
        notes=(
            "Needs an endpoint with /tokenize and echoed log-probabilities, and a calibration to give grades.",
            NO_GRAPH,
        ),
        metrics=(
            Metric(name="pair_order", ours=0.729, data=_MEASURED),
            Metric(name="spearman", ours=0.345, data=_MEASURED),
            Metric(name="kappa_quadratic", ours=0.311, data=_MEASURED, note="Cuts by label shares, queries left out."),
        ),
        example=EXAMPLE,
    )  # fmt: skip
    default: ClassVar[str] = "query-likelihood"
    kinds: ClassVar[tuple[str, ...]] = ("query-likelihood",)

    def verdict(self, pair: Pair, request: JudgeIn, run: Run) -> Verdict:
        """One scored prompt, turned into a signal and a grade."""
        chosen = self.chosen(request.template)

        def ask(passage: str) -> tuple[list[float | None], str, int]:
            shown = render(chosen, pair.query, passage, mark=fence(pair.query, passage, request.seed))
            prompt = self.endpoint.tokens(run, model=request.llm, messages=opening(shown))
            query = self.endpoint.tokens(run, model=request.llm, prompt=pair.query.strip(), add_special_tokens=False)
            told, model = self.endpoint.score([*prompt, *query], run, model=request.llm)
            return told[len(prompt) :], model, len(prompt) + len(query)

        (told, model, tokens), flags = shrinking(pair.passage, request.passage_chars, ask)
        facts = {"template": named(chosen), "llm": model, "tokens": tokens}
        known = [value for value in told if value is not None and math.isfinite(value)]
        if not known or len(known) < len(told):
            return Verdict(grade=None, valid=False, reason="no_log_probability", flags=flags, **facts)
        signal = math.fsum(known) / len(known)
        found = graded(signal, request, named(chosen), model)
        found["flags"] = [*found["flags"], *flags]
        return Verdict(**found, **facts)
