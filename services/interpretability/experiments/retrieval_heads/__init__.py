"""Retrieval heads: the experiment, and the public functions that its scores are made of."""

from services.interpretability.attention.retrieval_score import aggregate, retrieval_score, rouge1_recall
from services.interpretability.experiments.retrieval_heads.run import RetrievalHeads
from services.interpretability.experiments.retrieval_heads.spec import RetrievalHeadsSpec
from shared.lm.niah_prompts import needle_span

__all__ = ["RetrievalHeads", "RetrievalHeadsSpec", "aggregate", "needle_span", "retrieval_score", "rouge1_recall"]
