"""Word-overlap judge: the share of the query's words that the passage holds. The baseline, and a voter in ensembles."""

from typing import ClassVar

from services.relevance_judge.judge import EXAMPLE, PAPER, Judge, apply_calibration
from services.relevance_judge.metrics.baselines import overlap
from services.relevance_judge.schemas import JudgeIn, Pair, Verdict
from shared.registry import CallContext, Card, Metric

_CUTS = {"cuts": (0.0, 0.3333, 0.6666), "how": "quantile", "pairs": 192, "queries": 24}
"""For the example: fitted on the whole mini-collection; fit your own for yours."""
_MEASURED = "192 synthetic pairs, passages and labels by one language model"


class WordOverlap(Judge):
    """Grades by words that query and passage share; asks no language model."""

    card: ClassVar[Card] = Card(
        name="word-overlap",
        task="judge",
        paper=PAPER,
        licence="Apache-2.0",
        summary="Takes the share of the query's words that stand in the passage: the baseline that judges must beat.",
        notes=("Counts words and runs no network, so there is no ONNX graph.", "Needs a calibration to give grades."),
        metrics=(Metric(name="pair_order", ours=0.680, data=_MEASURED),),
        example={**EXAMPLE, "calibration": _CUTS},
    )
    default: ClassVar[str] = "word-overlap"
    kinds: ClassVar[tuple[str, ...]] = ("lexical",)
    asks_model: ClassVar[bool] = False

    def verdict(self, pair: Pair, request: JudgeIn, run: CallContext) -> Verdict:
        template = self.select_template(request.template)
        passage = pair.passage[: request.passage_chars]
        share = overlap(pair.query, {"passage": passage})["passage"]
        facts = apply_calibration(share, request, template.pinned_id, "none")
        cut = ["cut"] if len(passage) < len(pair.passage) else []
        return Verdict(**{**facts, "flags": [*facts["flags"], *cut]}, template=template.pinned_id)
