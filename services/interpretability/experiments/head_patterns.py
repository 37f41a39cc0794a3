"""Head-patterns experiment: heads that look at the previous token, at the same token before, or at its successor.

A random sequence comes twice, so that nothing but its repetition can be used ("A Mathematical Framework for
Transformer Circuits", 2021). Knows tokens; knows no text.
"""

from __future__ import annotations

import random
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from fovea.errors import InvalidOption
from services.interpretability.attention.head_scores import head_patterns, top_heads
from services.interpretability.core.experiment import EXAMPLE_LM, NO_GRAPH, Cost, Experiment, Progress, Spec
from services.interpretability.core.report import HeatMap, Report, Scalar, Table, head_axes, head_name, to_matrix
from services.interpretability.core.studied_model import StudiedModel
from shared.registry import Card, Paper

_CAPTIONS = {
    "previous": "Mean attention to the token before.",
    "duplicate": "Mean attention, in the second half, to the same token in the first.",
    "induction": "Mean attention, in the second half, to the token that followed the same one in the first.",
    "first": "Mean attention to the first token.",
    "entropy": "Mean entropy of a row, in nats: 0 looks at one token, more is spread wider.",
}


class HeadPatternsSpec(Spec):
    """The sequence that is repeated."""

    half: int = Field(32, ge=2, le=2048, description="Tokens of the random sequence, drawn by the seed.")
    text: str | None = Field(None, max_length=20_000, description="Repeated instead of a random sequence.")


class HeadPatterns(Experiment[HeadPatternsSpec]):
    """Finds previous-token, duplicate-token and induction heads, first-token mass and entropy, from one forward."""

    In = HeadPatternsSpec
    mode = "sync"
    route: ClassVar[str] = "heads/patterns"
    card: ClassVar[Card] = Card(
        name="head-patterns",
        task="probe",
        licence="Apache-2.0",
        summary="Finds previous-token, duplicate-token and induction heads on a sequence that comes twice.",
        paper=Paper(
            title="In-context Learning and Induction Heads",
            venue="Transformer Circuits Thread",
            year=2022,
            url="https://arxiv.org/abs/2209.11895",
        ),
        notes=("Random tokens are no language: a head may behave otherwise on text.", NO_GRAPH),
        example={"lm": EXAMPLE_LM, "seed": 0, "half": 24},
    )

    def cost(self, spec: HeadPatternsSpec, subject: StudiedModel) -> Cost:
        return Cost(1, 2 * len(_make_half(spec, subject)))

    def run(self, spec: HeadPatternsSpec, subject: StudiedModel, progress: Progress) -> Report:
        half = _make_half(spec, subject)
        scores = head_patterns(subject.model, half)
        axes: Any = head_axes(subject.layers, subject.heads)
        text = subject.tokenizer.decode(half * 2) if spec.text else None
        return Report(
            title="Head patterns",
            scalars={"tokens": Scalar(value=2 * len(half))},
            grids=[
                HeatMap(
                    name=name,
                    values=to_matrix(table),
                    **axes,
                    text=text,
                    caption=_CAPTIONS[name],
                    unit="nats" if name == "entropy" else "mean attention",
                )
                for name, table in scores.items()
            ],
            tables=[_strongest_table(scores)],
        )


def _strongest_table(scores: dict[str, np.ndarray], rows: int = 5) -> Table:
    kinds = ("previous", "duplicate", "induction", "first")
    return Table(
        name="strongest",
        columns=["kind", "head", "score"],
        rows=[
            [kind, head_name(head), float(scores[kind][head])]
            for kind in kinds
            for head in top_heads(scores[kind], 1.0)[:rows]
        ],
        caption="The heads that do each most.",
    )


def _make_half(spec: HeadPatternsSpec, subject: StudiedModel) -> list[int]:
    if spec.text is not None:
        half = subject.encode(spec.text, special=False)
    else:
        rng = random.Random(f"patterns/{spec.seed}")
        half = [rng.randrange(subject.model.config.vocab) for _ in range(spec.half)]
    subject.check_window(2 * len(half), "half" if spec.text is None else "text")
    if len(half) < 2:
        detail = "text has one token; two are needed to tell the token before from the same one."
        raise InvalidOption(detail, field="text")
    return half
