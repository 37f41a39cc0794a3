"""Retrieval-heads experiment: which heads copy from distant context, and what hiding them destroys.

"Retrieval Head Mechanistically Explains Long-Context Factuality" (2024), with AttentionInfluence's key-value task as a
second protocol. Produces the evidence (`retrieval-report/1`) and, from it, a HeadPlan.
"""

import math
import random
from dataclasses import asdict
from typing import Any

import numpy as np

from services.interpretability.attention.retrieval_score import Head, aggregate, rouge1_recall, score_copies
from services.interpretability.core.experiment import Cost, Experiment, Progress, probe_card
from services.interpretability.core.report import Report, to_matrix
from services.interpretability.core.studied_model import StudiedModel
from services.interpretability.experiments.retrieval_heads.report import build_report
from services.interpretability.experiments.retrieval_heads.spec import (
    PAPER,
    RetrievalHeadsSpec,
    Sample,
    cell_content,
    draw_samples,
)
from services.interpretability.generation.forced_decoding import (
    AnswerScore,
    generate_answer,
    score_known_answer,
    trace_known_answer,
)
from services.interpretability.generation.prefix_reader import PrefixReader, plan_pieces

_COUNTS = {"samples": 8, "pairs": 5, "shots": 2, "key_chars": 4, "value_words": 0, "hide": [2], "hide_samples": 8}


class RetrievalHeads(Experiment[RetrievalHeadsSpec]):
    """Finds retrieval heads, and measures what the model can't do without them."""

    In = RetrievalHeadsSpec
    route = "heads/retrieval"
    card = probe_card(
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
        can_mask = scores.kept and spec.hide and not progress.stopped
        masked = run_masking_study(spec, subject, scores.ranking, samples, progress) if can_mask else {}
        return build_report(spec, subject, scored, scores, masked)


def _score_sample(spec: RetrievalHeadsSpec, reader: PrefixReader, sample: Sample) -> dict[str, Any]:
    prompt, subject = sample.prompt, reader.subject
    answer = (
        trace_known_answer(reader, prompt, top=spec.top)
        if spec.teacher_forced
        else generate_answer(subject, prompt, steps=spec.steps, top=spec.top)
    )
    text = subject.tokenizer.decode(answer.tokens)
    recall = share = rouge1_recall(prompt.answer, text)
    scores = np.zeros((subject.layers, subject.heads))
    if prompt.span is None:
        recall = -2.0  # below every gate: the answer's position is not known, so no head can be credited
    elif answer.tokens:
        scores = score_copies(answer.top_positions, prompt.ids, answer.tokens, prompt.span, spec.mode)
    return {
        "scores": to_matrix(scores),
        "recall": recall,
        "nll": answer.score.nll if answer.score else None,
        "accuracy": answer.score.accuracy if answer.score else share,
        "answer": text,
    }


def draw_controls(spec: RetrievalHeadsSpec, size: int, heads: int) -> list[tuple[int, ...]]:
    """Draw different sets of `size` ranks among `heads`, as controls; fewer, or none, where there are not so many.

    Section 4: from outside the top 100, in small models from outside the top 15 %; never one that is hidden.
    """
    outside = range(max(size, min(100, round(0.15 * heads))), heads)
    rng, draws = random.Random(f"{spec.seed}/{size}"), set[tuple[int, ...]]()
    while len(draws) < min(spec.controls, math.comb(len(outside), size)):
        draws.add(tuple(sorted(rng.sample(outside, size))))
    return sorted(draws)


def choose_masked_samples(spec: RetrievalHeadsSpec, samples: list[Sample]) -> list[Sample]:
    """Return the samples of the masking study, spread evenly over all."""
    return samples[:: max(len(samples) // spec.hide_samples, 1)][: spec.hide_samples]


def run_masking_study(
    spec: RetrievalHeadsSpec, subject: StudiedModel, ranking: list[Head], samples: list[Sample], progress: Progress
) -> dict[str, list[AnswerScore]]:
    """Hide the top heads, and at least ten random draws of as many (section 4).

    Returns the scores of each sample per variant: `none`, `top K`, `random K #i`.
    """
    variants: dict[str, list[Head]] = {"none": []}
    for size in spec.hide:
        variants[f"top {size}"] = ranking[:size]
        for i, ranks in enumerate(draw_controls(spec, size, len(ranking))):
            variants[f"random {size} #{i}"] = sorted(ranking[rank] for rank in ranks)
    chosen = choose_masked_samples(spec, samples)
    work = [(name, heads, sample) for name, heads in variants.items() for sample in chosen]

    def content(item: tuple[str, list[Head], Sample]) -> dict[str, Any]:
        return {"hidden": item[1], "phase": spec.phase, **cell_content(spec, item[2])}

    def score(item: tuple[str, list[Head], Sample]) -> dict[str, float]:
        return asdict(score_known_answer(subject, item[2].prompt, item[1], spec.phase))

    results: dict[str, list[AnswerScore]] = {}
    for (name, _, _), value in progress.each(work, content, score):
        results.setdefault(name, []).append(AnswerScore(**value))
    return results
