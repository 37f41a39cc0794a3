"""Head-comparison experiment: what the heads of two models do, side by side, on the same kind of sequence.

Each model gets random tokens of its own that come twice ("In-context Learning and Induction Heads", 2022); layers are
compared by relative depth, so the models may differ in size. Knows tokens; knows no text.
"""

from typing import Any

import numpy as np
from pydantic import Field
from scipy.stats import spearmanr

from services.interpretability.attention.head_scores import head_patterns, top_heads
from services.interpretability.core.experiment import EXAMPLE_LM, Cost, Experiment, Progress, Spec, probe_card
from services.interpretability.core.report import (
    Artefact,
    Bar,
    Bars,
    HeatMap,
    Report,
    Scalar,
    Table,
    canonical_json,
    head_map,
    head_name,
    heat_map,
)
from services.interpretability.core.studied_model import StudiedModel
from services.interpretability.experiments.head_patterns import PAPER, draw_half

KINDS = {"previous": "the token before", "duplicate": "the same token before", "induction": "what followed it"}
MIN_SCORE = 0.3
"""Mean attention from which a head is counted as of a kind, as in circuits."""

DEPTHS = 10
"""Bins of relative depth."""


class HeadComparisonSpec(Spec):
    """The other model, and the length of the sequence."""

    other: str = Field(EXAMPLE_LM, max_length=200, description="The language model that is compared with.")
    half: int = Field(32, ge=2, le=2048, description="Tokens of the random sequence that comes twice.")


class HeadComparison(Experiment[HeadComparisonSpec]):
    """Counts and places the kinds of heads of two models."""

    In = HeadComparisonSpec
    mode = "sync"
    route = "heads/compare"
    card = probe_card(
        "head-comparison",
        "Compares the heads of two models: how many of each kind there are, how strong, and how deep.",
        PAPER,
        "Models have random tokens of their own: a score says what a head does, not on what.",
        other=EXAMPLE_LM,
        half=24,
    )

    def cost(self, spec: HeadComparisonSpec, subject: StudiedModel) -> Cost:
        same = self.load_model(spec.other).model is subject.model
        return Cost(2, 4 * spec.half) if same else Cost(1, 2 * spec.half)

    def run(self, spec: HeadComparisonSpec, subject: StudiedModel, progress: Progress) -> Report:
        models = {"first": subject, "second": self.load_model(spec.other)}
        scores = {side: _score(model, spec) for side, model in models.items()}
        scalars = {f"{side}_heads": Scalar(value=m.layers * m.heads, note=m.name) for side, m in models.items()}
        if len({table["induction"].shape for table in scores.values()}) == 1:
            for kind in KINDS:
                value = _correlate(scores["first"][kind], scores["second"][kind])
                note = "Rank correlation of heads of equal layer and number."
                scalars[f"same_place_{kind}"] = Scalar(value=value, note=note)
        captions = {kind: f"mean attention to {what}." for kind, what in KINDS.items()}
        grids = [
            head_map(f"{side} {kind}", scores[side][kind], f"{models[side].name}: {caption}", unit="mean attention")
            for kind, caption in captions.items()
            for side in models
        ]
        return Report(
            title=f"Heads of {subject.name} and {models['second'].name}",
            scalars=scalars,
            tables=[_count_table(models, scores), _strongest_table(models, scores)],
            grids=[_depth_map(scores), *grids],
            bars=[_depth_bars(kind, {side: scores[side][kind] for side in models}) for kind in KINDS],
            artefacts=[_identify(models)],
        )


def _score(subject: StudiedModel, spec: HeadComparisonSpec) -> dict[str, np.ndarray]:
    subject.check_window(2 * spec.half, "half")
    return head_patterns(subject.model, draw_half(subject, spec.half, spec.seed))


def _correlate(one: np.ndarray, other: np.ndarray) -> float:
    """Rank correlation of two maps, equal scores of equal rank; NaN where all heads of a map score alike."""
    varies = min(np.ptp(one), np.ptp(other)) > 0
    return float(spearmanr(one, other, axis=None).statistic) if varies else float("nan")


def _by_depth(table: np.ndarray) -> list[float]:
    """The strongest head of each tenth of the layers; a model of fewer layers repeats them."""
    layers = len(table)
    starts = [depth * layers // DEPTHS for depth in range(DEPTHS)]
    ends = [max((depth + 1) * layers // DEPTHS, start + 1) for depth, start in enumerate(starts)]
    return [float(table[start:end].max()) for start, end in zip(starts, ends, strict=True)]


def _depth_map(scores: dict[str, dict[str, np.ndarray]]) -> HeatMap:
    rows = {f"{side} {kind}": _by_depth(tables[kind]) for kind in KINDS for side, tables in scores.items()}
    return heat_map(
        "depth",
        rows.values(),
        ("model, kind", rows),
        ("relative depth, %", [100 * i // DEPTHS for i in range(DEPTHS)]),
        "The strongest head of each tenth of the layers: where each kind lives, whatever the models' sizes.",
        unit="mean attention",
    )


def _count_table(models: dict[str, StudiedModel], scores: dict[str, dict[str, np.ndarray]]) -> Table:
    rows: list[list[Any]] = []
    for kind in KINDS:
        for side, model in models.items():
            table = scores[side][kind]
            count = int((table >= MIN_SCORE).sum())
            rows.append([kind, model.name, count, count / table.size, float(table.max()), float(np.median(table))])
    caption = f"Heads that give at least {MIN_SCORE} of their attention to {', '.join(KINDS.values())}."
    return Table.of("counts", "kind, model, heads, share, strongest, median", rows, caption)


def _strongest_table(models: dict[str, StudiedModel], scores: dict[str, dict[str, np.ndarray]], most: int = 5) -> Table:
    rows: list[list[Any]] = []
    for kind in KINDS:
        pairs = [top_heads(scores[side][kind], 1.0)[:most] for side in models]
        for rank, (first, second) in enumerate(zip(*pairs, strict=False), 1):
            found = [scores["first"][kind][first], scores["second"][kind][second]]
            rows.append([kind, rank, head_name(first), float(found[0]), head_name(second), float(found[1])])
    columns = "kind, rank, first, score, second, its score"
    return Table.of("strongest", columns, rows, "The strongest heads of each kind, by rank.")


def _identify(models: dict[str, StudiedModel]) -> Artefact:
    """The compared models: a manifest names one model only."""
    facts = {side: {"model": model.name, "weights_sha256": model.weights_sha256} for side, model in models.items()}
    return Artefact.of("models.json", canonical_json(facts))


def _depth_bars(kind: str, tables: dict[str, np.ndarray]) -> Bars:
    quantiles = (50, 75, 90, 95, 99, 100)
    pairs = [(q, side) for q in quantiles for side in tables]
    bars = [Bar(label=f"{side[0]}{q}", value=float(np.percentile(tables[side], q))) for q, side in pairs]
    caption = f"Percentiles of all heads' attention to {KINDS[kind]}: f is the first model, s the second."
    return Bars(name=f"{kind} heads", bars=bars, unit="mean attention", caption=caption)
