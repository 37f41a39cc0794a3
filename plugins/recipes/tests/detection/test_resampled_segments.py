"""Temporal scores of resampled videos are those of the same videos as rows, copies under numbers of their own."""

from typing import Any

import numpy as np
import pytest

from fovea_recipes.detection.metrics.temporal import (
    average_recall,
    resampled_precision,
    resampled_recall,
    temporal_average_precision,
)

LEVELS = (0.3, 0.5, 0.75)


def rows(rng: np.random.Generator, per_video: int, *, scored: bool) -> list[tuple[Any, ...]]:
    made = []
    for video in range(6):
        for _ in range(rng.integers(per_video + 1)):
            start = rng.uniform(0, 0.8)
            score = (rng.uniform(),) if scored else ()
            made.append((video, start, start + rng.uniform(0.05, 0.2), int(rng.integers(3)), *score))
    return made


def copied(some: list[tuple[Any, ...]], videos: list[int]) -> list[tuple[Any, ...]]:
    return [(place, *row[1:]) for place, video in enumerate(videos) for row in some if row[0] == video]


@pytest.mark.parametrize("seed", range(8))
def test_resampled_scores_are_those_of_copied_rows(seed):
    rng = np.random.default_rng(seed)
    truth, found = rows(rng, 4, scored=False), rows(rng, 25, scored=True)
    for videos in (list(range(6)), [0, 0, 3, 5, 5, 5], rng.integers(6, size=6).tolist()):
        there, seen = copied(truth, videos), copied(found, videos)
        got = resampled_precision(truth, found, LEVELS)(np.array(videos))
        np.testing.assert_allclose(got, temporal_average_precision(there, seen, LEVELS).reshape(got.shape))
        share = resampled_recall(truth, found, 5, LEVELS)(np.array(videos))
        assert share == pytest.approx(average_recall(there, seen, 5, LEVELS))
