"""Retrieval-heads experiment: which heads copy from distant context, and what hiding them destroys.

"Retrieval Head Mechanistically Explains Long-Context Factuality" (2024), with AttentionInfluence's key-value task as a
second protocol. Produces the evidence (`retrieval-report/1`) and, from it, a HeadPlan.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from services.interpretability.attention.retrieval_score import aggregate, rouge1_recall, score_copies
from services.interpretability.core.experiment import Cost, Experiment, Progress, probe_card
from services.interpretability.core.report import Report, to_matrix
from services.interpretability.core.studied_model import StudiedModel
from services.interpretability.experiments.retrieval_heads.masking import (
    MaskingStudy,
    choose_masked_samples,
    draw_controls,
)
from services.interpretability.experiments.retrieval_heads.report import build_report
from services.interpretability.experiments.retrieval_heads.samples import Sample, cell_content, draw_samples
from services.interpretability.experiments.retrieval_heads.spec import PAPER, RetrievalHeadsSpec
from services.interpretability.generation.forced_decoding import generate_answer, trace_known_answer
from services.interpretability.generation.prefix_reader import PrefixReader, plan_pieces
from shared.registry import Card

_COUNTS = {"samples": 8, "pairs": 5, "shots": 2, "key_chars": 4, "value_words": 0, "hide": [2], "hide_samples": 8}


class RetrievalHeads(Experiment[RetrievalHeadsSpec]):
    """Finds retrieval heads, and measures what the model can't do without them."""

    In = RetrievalHeadsSpec
    route: ClassVar[str] = "heads/retrieval"
    card: ClassVar[Card] = probe_card(
        "retrieval-heads",
        "Finds the attention heads that copy from distant context, and what the model can't do without them.",
        PAPER,
        "Scores every query head; a HeadPlan takes the largest of each key/value group.",
        "Teacher-forced by default: the answer is read, not made in 50 steps; `teacher_forced: false` makes it.",
        protocol="kv",
        **_COUNTS,
    )

    def cost(self, spec: RetrievalHeadsSpec, subject: StudiedModel) -> Cost:
        samples = list(draw_samples(spec, subject))
        total, known = Cost(0, 0, 0), list[int]()
        for sample in samples:
            prompt, answer = sample.prompt.ids, sample.prompt.answer_ids
            if spec.teacher_forced:
                text = [*prompt, *answer[:-1]]
                pieces = plan_pieces(known, text, len(answer), together=subject.rows_are_independent)
                known = text[: pieces[-1].start]
                total += Cost(len(pieces), sum(map(len, pieces)))
            else:
                total += Cost(1 + spec.steps, len(prompt) - 1 + spec.steps)
        draws = [len(draw_controls(spec, size, subject.layers * subject.heads)) for size in spec.hide]
        variants = sum(1 + n for n in draws) + bool(spec.hide)
        for sample in choose_masked_samples(spec, samples):
            total += Cost(1, len(sample.prompt.ids) + len(sample.prompt.answer_ids) - 1) * variants
        return total

    def run(self, spec: RetrievalHeadsSpec, subject: StudiedModel, progress: Progress) -> Report:
        samples, reader = list(draw_samples(spec, subject)), PrefixReader(subject)
        scored = list(progress.each(samples, lambda s: cell_content(spec, s), lambda s: _score_sample(spec, reader, s)))
        maps = [value["scores"] for _, value in scored] or np.zeros((0, subject.layers, subject.heads))
        recalls = [value["recall"] for _, value in scored]
        scores = aggregate(maps, recalls, gate=-1.0 if spec.teacher_forced else 0.5)
        study = MaskingStudy(spec, subject, scores, samples, progress)
        masked = study.run() if scores.kept and spec.hide and not progress.stopped else {}
        return build_report(spec, subject, scored, scores, masked)


def _score_sample(spec: RetrievalHeadsSpec, reader: PrefixReader, sample: Sample) -> dict[str, Any]:
    prompt, subject = sample.prompt, reader.subject
    answer = (
        trace_known_answer(reader, prompt, top=spec.top)
        if spec.teacher_forced
        else generate_answer(subject, prompt, steps=spec.steps, top=spec.top)
    )
    text = subject.tokenizer.decode(answer.tokens)
    recall = rouge1_recall(prompt.answer, text)
    scores = np.zeros((subject.layers, subject.heads))
    if prompt.span is None:
        recall = -2.0  # below every gate: the answer's position is not known, so no head can be credited
    elif answer.tokens:
        scores = score_copies(answer.top_positions, prompt.ids, answer.tokens, prompt.span, spec.mode)
    return {
        "scores": to_matrix(scores),
        "recall": recall,
        "nll": answer.score.nll if answer.score else None,
        "accuracy": answer.score.accuracy if answer.score else recall,
        "answer": text,
    }
