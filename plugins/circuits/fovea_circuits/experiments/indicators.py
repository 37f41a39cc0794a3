"""Indicators experiment: entropy, concentration, sink, local focus and diversity of attention maps.

"Deconstructing Attention" (2025), section 3 of our notes on it. Knows one text.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field
from torch import Tensor

from services.interpretability.attention.pattern_capture import visit_patterns
from services.interpretability.core.experiment import Cost, Experiment, Progress, Spec, probe_card
from services.interpretability.core.report import Bar, Bars, Report, Scalar, heat_map
from services.interpretability.core.studied_model import StudiedModel
from services.interpretability.experiments.attention import resolve_indices
from shared.registry import Paper

PAPER = Paper.on_arxiv(
    "Deconstructing Attention: Investigating Design Principles for Effective Language Modeling", 2025, "2510.11602"
)

MAX_TOKENS = 1024
"""Tokens: diversity compares all heads of a layer cell by cell."""

_CAPTIONS = {
    "entropy": "Entropy of the whole map in nats, summed over its rows: more is spread wider.",
    "concentration": "Frobenius norm of the map: at most √T, where every row looks at one token.",
    "sink": "Mean of the first column: attention to the first token.",
    "local_0": "Mean of the diagonal: attention to the token itself.",
    "local_1": "Mean attention one token back.",
    "local_2": "Mean attention two tokens back.",
    "local_3": "Mean attention three tokens back.",
}

INDICATOR_NAMES = tuple(_CAPTIONS)
"""Indicators of each head, by the names that reports use."""


@dataclass(frozen=True, slots=True, eq=False)
class IndicatorTable:
    """Indicators of one layer's maps [H,T,T] ("Deconstructing Attention", 2025).

    Attributes:
        entropy: Nats of each whole map [H].
        concentration: Frobenius norm [H].
        sink: Mean of the first column [H].
        local_focus: Means of the diagonal and of the first three below it [H,4].
        diversity: Deviation over heads, summed over cells, times 2 / (T (1 + T)).
    """

    entropy: np.ndarray
    concentration: np.ndarray
    sink: np.ndarray
    local_focus: np.ndarray
    diversity: float

    def by_name(self) -> dict[str, np.ndarray]:
        """Return the indicators of each head [H] by the names that reports use: `entropy` … `local_3`."""
        local = {f"local_{n}": self.local_focus[:, n] for n in range(self.local_focus.shape[1])}
        return {"entropy": self.entropy, "concentration": self.concentration, "sink": self.sink, **local}


def indicators(patterns: np.ndarray | Tensor) -> IndicatorTable:
    """Compute the indicators of one layer's maps [H,T,T]."""
    a = np.asarray(patterns.detach().double().cpu() if isinstance(patterns, Tensor) else patterns, np.float64)
    T = a.shape[-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(a > 0, a * np.log(a), 0.0).sum((1, 2))
    local = [np.diagonal(a, -n, 1, 2).mean(-1) if n < T else np.zeros(len(a)) for n in range(4)]
    return IndicatorTable(
        entropy=entropy,
        concentration=np.sqrt((a**2).sum((1, 2))),
        sink=a[:, :, 0].mean(-1),
        local_focus=np.stack(local, 1),
        diversity=float(a.std(0).sum() * 2 / (T * (1 + T))),
    )


class IndicatorsSpec(Spec):
    """Text and layers."""

    text: str = Field(min_length=1, max_length=50_000, description="The text.")
    layers: list[int] | None = Field(None, max_length=512, description="Left out, all.")


class Indicators(Experiment[IndicatorsSpec]):
    """Measures how far a head's pattern is from uniform, local and sink attention."""

    In = IndicatorsSpec
    mode = "sync"
    route = "indicators"
    card = probe_card(
        "indicators",
        "Measures how spread, concentrated, local and diverse the attention of each head is.",
        PAPER,
        "Sums over a whole map grow with the text: compare texts of equal length.",
        text="kqzwxm kqzwxm kqzwx",
    )

    def cost(self, spec: IndicatorsSpec, subject: StudiedModel) -> Cost:
        return Cost(1, len(subject.encode(spec.text, most=MAX_TOKENS)))

    def run(self, spec: IndicatorsSpec, subject: StudiedModel, progress: Progress) -> Report:
        ids = subject.encode(spec.text, most=MAX_TOKENS)
        layers = resolve_indices(spec.layers, subject.layers, "layers")
        tables = _per_layer(subject, ids, layers)
        by_layer = [table.by_name() for table in tables]
        bars = [Bar(label=str(layer), value=table.diversity) for layer, table in zip(layers, tables, strict=True)]
        axes = ("layer", layers), ("head", range(subject.heads))
        caption = "How much the heads of a layer differ: deviation over heads, mean over visible cells."
        return Report(
            title="Indicators",
            scalars={"tokens": Scalar(value=len(ids))},
            grids=[
                heat_map(name, [heads[name] for heads in by_layer], *axes, _CAPTIONS[name], text=spec.text)
                for name in INDICATOR_NAMES
            ],
            bars=[Bars(name="diversity", bars=bars, caption=caption)],
        )


def _per_layer(subject: StudiedModel, ids: list[int], layers: list[int]) -> list[IndicatorTable]:
    """One forward; maps are held for one layer at a time."""
    maps: dict[int, np.ndarray] = {}
    tables: dict[int, IndicatorTable] = {}
    T = len(ids)

    def visit(layer: int, start: int, rows: Any) -> None:
        whole = maps.setdefault(layer, np.zeros((subject.heads, T, T), np.float32))
        whole[:, start : start + rows.shape[2], : rows.shape[3]] = rows[0].float().cpu().numpy()
        if start + rows.shape[2] == T:
            tables[layer] = indicators(maps.pop(layer))

    visit_patterns(subject.model, subject.tensor([ids]), visit, layers=layers)
    return [tables[layer] for layer in layers]
