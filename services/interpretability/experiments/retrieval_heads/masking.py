"""Masking study of the retrieval-heads experiment: the top heads hidden, and as many random ones as controls."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from services.interpretability.attention.retrieval_score import Aggregate
from services.interpretability.core.experiment import Progress
from services.interpretability.core.studied_model import StudiedModel
from services.interpretability.experiments.retrieval_heads.samples import Sample, cell_content
from services.interpretability.experiments.retrieval_heads.spec import RetrievalHeadsSpec
from services.interpretability.generation.forced_decoding import AnswerScore, score_known_answer

Head = tuple[int, int]


def draw_controls(spec: RetrievalHeadsSpec, size: int, heads: int) -> list[tuple[int, ...]]:
    """Draw different sets of `size` ranks among `heads`, as controls; fewer where there are not so many.

    Section 4: from outside the top 100, in small models from outside the top 15 %.
    """
    outside = range(min(100, round(0.15 * heads)), heads)
    rng, draws = random.Random(f"{spec.seed}/{size}"), set[tuple[int, ...]]()
    size = min(size, len(outside))
    while len(draws) < min(spec.controls, math.comb(len(outside), size)):
        draws.add(tuple(sorted(rng.sample(outside, size))))
    return sorted(draws)


def choose_masked_samples(spec: RetrievalHeadsSpec, samples: list[Sample]) -> list[Sample]:
    """Return the samples of the masking study, spread evenly over all."""
    return samples[:: max(len(samples) // spec.hide_samples, 1)][: spec.hide_samples]


@dataclass(frozen=True)
class MaskingStudy:
    """Masking study (section 4): hides the top heads, and at least ten random draws of as many.

    Attributes:
        spec: The spec of the experiment.
        subject: The studied model.
        scores: Scores of all heads.
        samples: All samples; some of them are masked.
        progress: Runs the cells.
    """

    spec: RetrievalHeadsSpec
    subject: StudiedModel
    scores: Aggregate
    samples: list[Sample]
    progress: Progress

    def run(self) -> dict[str, list[AnswerScore]]:
        """Return the scores of each sample per variant: `none`, `top K`, `random K #i`."""
        chosen = choose_masked_samples(self.spec, self.samples)
        results: dict[str, list[AnswerScore]] = {}
        for name, heads in self.variants().items():
            for _, value in self.progress.each(
                chosen,
                lambda s, heads=heads: {"hidden": heads, "phase": self.spec.phase, **cell_content(self.spec, s)},  # type: ignore[misc]
                lambda s, heads=heads: self._score(s, heads),  # type: ignore[misc]
            ):
                results.setdefault(name, []).append(AnswerScore(**value))
        return results

    def variants(self) -> dict[str, list[Head]]:
        """Return the sets of heads that are hidden, by variant."""
        ranking = self.scores.ranking
        sets: dict[str, list[Head]] = {"none": []}
        for size in self.spec.hide:
            sets[f"top {size}"] = ranking[:size]
            for i, ranks in enumerate(draw_controls(self.spec, size, len(ranking))):
                sets[f"random {size} #{i}"] = sorted(ranking[rank] for rank in ranks)
        return sets

    def _score(self, sample: Sample, heads: list[Head]) -> dict[str, float]:
        score = score_known_answer(self.subject, sample.prompt, heads, self.spec.phase)
        return {"nll": score.nll, "accuracy": score.accuracy}
