"""Needle cells, which every needle evaluation shares: prompts by needle, length and depth, recall, and the map of it.

Knows prompts and texts; who answers is up to the evaluation: the engine, a model with hidden heads, or a server.
"""

from collections.abc import Sequence
from typing import NamedTuple

from services.interpretability.core.report import HeatMap, needle_map
from shared.lm.niah_prompts import Codec, Needle, Prompt, build_needle_prompt


class NeedleCell(NamedTuple):
    """One prompt of a grid: number of the needle, tokens of the prompt, percent of the context before the needle."""

    needle: int
    length: int
    depth: float

    def build_prompt(self, codec: Codec, needles: Sequence[Needle], corpus: str | None, seed: int) -> Prompt:
        """Build the prompt. Generated text differs from needle to needle."""
        what = needles[self.needle]
        return build_needle_prompt(codec, what, self.length, self.depth, corpus=corpus, seed=seed + self.needle)


def map_recall(lengths: Sequence[int], depths: Sequence[float], recalls: Sequence[tuple[NeedleCell, float]]) -> HeatMap:
    """Build the map of mean recall, depths by lengths."""
    return needle_map(lengths, depths, [(cell._asdict(), recall) for cell, recall in recalls])
