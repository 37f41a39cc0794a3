"""Indicators experiment: entropy, concentration, sink, local focus and diversity of attention maps.

"Deconstructing Attention" (2025), section 3 of our notes on it. Knows one text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from pydantic import Field
from torch import Tensor

from fovea.errors import InvalidOption, TooLarge
from services.interpretability.attention.pattern_capture import visit_patterns
from services.interpretability.core.experiment import EXAMPLE_LM, NO_GRAPH, Cost, Experiment, Progress, Spec
from services.interpretability.core.report import Axis, Bar, Bars, HeatMap, Report, Scalar, to_matrix
from services.interpretability.core.studied_model import StudiedModel
from shared.registry import Card, Paper

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
    a = np.asarray(patterns, np.float64)
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
    route: ClassVar[str] = "indicators"
    card: ClassVar[Card] = Card(
        name="indicators",
        task="probe",
        licence="Apache-2.0",
        summary="Measures how spread, concentrated, local and diverse the attention of each head is.",
        paper=Paper(
            title="Deconstructing Attention: Investigating Design Principles for Effective Language Modeling",
            venue="arXiv:2510.11602",
            year=2025,
            url="https://arxiv.org/abs/2510.11602",
        ),
        notes=("Sums over a whole map grow with the text: compare texts of equal length.", NO_GRAPH),
        example={"lm": EXAMPLE_LM, "seed": 0, "text": "kqzwxm kqzwxm kqzwx"},
    )

    def cost(self, spec: IndicatorsSpec, subject: StudiedModel) -> Cost:
        return Cost(1, len(_encode_text(spec, subject)))

    def run(self, spec: IndicatorsSpec, subject: StudiedModel, progress: Progress) -> Report:
        ids, layers = _encode_text(spec, subject), _resolve_layers(spec, subject)
        tables = _per_layer(subject, ids, layers)
        by_layer = [table.by_name() for table in tables]
        by_name = {name: [heads[name] for heads in by_layer] for name in INDICATOR_NAMES}
        diversity = [Bar(label=str(layer), value=table.diversity) for layer, table in zip(layers, tables, strict=True)]
        axes: dict[str, Any] = {
            "rows": Axis(label="layer", ticks=[str(l) for l in layers]),
            "columns": Axis(label="head", ticks=[str(h) for h in range(subject.heads)]),
        }
        return Report(
            title="Indicators",
            scalars={"tokens": Scalar(value=len(ids))},
            grids=[
                HeatMap(name=name, values=to_matrix(values), **axes, text=spec.text, caption=_CAPTIONS[name])
                for name, values in by_name.items()
            ],
            bars=[
                Bars(
                    name="diversity",
                    bars=diversity,
                    caption="How much the heads of a layer differ: deviation over heads, mean over visible cells.",
                )
            ],
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


def _encode_text(spec: IndicatorsSpec, subject: StudiedModel) -> list[int]:
    ids = subject.encode(spec.text)
    if len(ids) > MAX_TOKENS:
        detail = f"text has {len(ids)} tokens; indicators take at most {MAX_TOKENS}."
        raise TooLarge(detail, hint="Send the passage that matters.", field="text")
    return ids


def _resolve_layers(spec: IndicatorsSpec, subject: StudiedModel) -> list[int]:
    layers = list(range(subject.layers)) if spec.layers is None else sorted(set(spec.layers))
    if not layers or layers[0] < 0 or layers[-1] >= subject.layers:
        detail = f"layers must name some of 0…{subject.layers - 1}."
        raise InvalidOption(detail, field="layers")
    return layers
