"""Deconstruction experiment: how much a text's loss grows when a layer or head attends in a simpler way.

"Deconstructing Attention" (2025) retrains models under such relaxations. Here nothing is retrained: what is measured is
how much this model depends on a part, not whether another could be trained without it.
"""

from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from fovea.errors import InvalidOption
from fovea_circuits.experiments.indicators import PAPER, indicators
from fovea_circuits.simplified_attention import Relaxation, SimplifiedAttention
from services.interpretability.attention.pattern_capture import visit_patterns
from services.interpretability.core.experiment import Cost, Experiment, Progress, Spec, probe_card
from services.interpretability.core.losses import token_losses
from services.interpretability.core.report import Bar, Bars, Report, Scalar, head_map, heat_map
from services.interpretability.core.studied_model import StudiedModel

__all__ = ["Deconstruction", "DeconstructionSpec", "indicators"]

MAX_TOKENS = 512
"""Tokens: relaxed heads hold their whole map."""

Head = tuple[int, int]


class DeconstructionSpec(Spec):
    """Text, relaxations, and whether layers or heads are relaxed at a time."""

    text: str = Field(min_length=2, max_length=20_000, description="At most 512 tokens.")
    kinds: list[Relaxation] = Field(
        ["uniform", "identity", "earlier", "relu"],
        min_length=1,
        max_length=5,
        description="uniform, identity (no mixing), average (pattern of corpus), earlier (layer's q and k), relu.",
    )
    each: Literal["layer", "head"] = Field("layer", description="Relax one layer, or one head, at a time.")
    corpus: str | None = Field(None, max_length=200_000, description="For average: text whose mean pattern is used.")
    back: int = Field(1, ge=1, le=64, description="For earlier: how many layers back.")

    @field_validator("kinds")
    @classmethod
    def drop_repeats(cls, kinds: list[Relaxation]) -> list[Relaxation]:
        """Each relaxation once: a row of the report is one."""
        return list(dict.fromkeys(kinds))


class Deconstruction(Experiment[DeconstructionSpec]):
    """Measures how much a model depends on each part of its attention."""

    In = DeconstructionSpec
    route = "deconstruction"
    card = probe_card(
        "deconstruction",
        "Replaces attention by simpler mixing, a layer or head at a time, and shows what that costs.",
        PAPER,
        "Without retraining this measures dependence, not trainability.",
        text="kqzwxm kqzwxm kqzwxm",
        kinds=["uniform", "identity", "relu"],
    )

    def cost(self, spec: DeconstructionSpec, subject: StudiedModel) -> Cost:
        n, parts = len(_encode_text(spec, subject)), len(_list_parts(spec, subject)) * len(spec.kinds)
        windows = len(_windows(spec, subject, n))
        return Cost(1 + parts + windows, (1 + parts + windows) * n, 1 + parts)

    def run(self, spec: DeconstructionSpec, subject: StudiedModel, progress: Progress) -> Report:
        ids = _encode_text(spec, subject)
        row, fixed = subject.tensor([ids]), _average_patterns(spec, subject, len(ids))
        base = progress.cell({"ids": ids}, lambda: float(token_losses(subject.model, row).mean()))
        parts = _list_parts(spec, subject)
        work = [(kind, name, heads) for kind in spec.kinds for name, heads in parts]

        def content(item: tuple[Relaxation, str, list[Head]]) -> dict[str, Any]:
            corpus = spec.corpus if item[0] == "average" else None
            return {"ids": ids, "kind": item[0], "heads": item[2], "corpus": corpus, "back": spec.back}

        def loss(item: tuple[Relaxation, str, list[Head]]) -> float:
            windows = subject.model.config.windows
            attend = SimplifiedAttention(item[0], item[2], fixed=fixed, back=spec.back, windows=windows)
            return float(token_losses(subject.model, row, attend=attend).mean())

        changes: dict[str, list[float]] = {}
        for (kind, _, _), value in progress.each(work, content, loss):
            changes.setdefault(kind, []).append(value - base)
        return _report(spec, subject, base, changes)


def _report(spec: DeconstructionSpec, subject: StudiedModel, base: float, changes: dict[str, list[float]]) -> Report:
    how_much = "How much the loss grows, in nats per token, when attention here is"
    size = subject.layers * (subject.heads if spec.each == "head" else 1)
    padded = {kind: [*values, *[np.nan] * (size - len(values))] for kind, values in changes.items()}
    more: dict[str, Any] = {"scale": "diverging", "unit": "nats/token"}
    grids, bars = [], []
    if spec.each == "head":
        for kind, values in padded.items():
            table = np.reshape(values, (subject.layers, subject.heads))
            grids.append(head_map(kind, table, f"{how_much} {kind}.", text=spec.text, **more))
    elif padded:
        axes = ("relaxation", padded), ("layer", range(subject.layers))
        grids = [heat_map("layers", padded.values(), *axes, f"{how_much} relaxed.", **more)]
        for kind, values in padded.items():
            caption = f"{how_much} {kind}, one layer at a time."
            of_layers = [Bar(label=str(l), value=v) for l, v in enumerate(values)]
            bars.append(Bars(name=kind, unit="nats/token", bars=of_layers, caption=caption))
    return Report(
        title="Deconstruction",
        grids=grids,
        bars=bars,
        warnings=["Without retraining this measures dependence, not trainability."],
        scalars={"nll": Scalar(value=base, unit="nats/token", note="On the text, by the unchanged model.")},
    )


def _list_parts(spec: DeconstructionSpec, subject: StudiedModel) -> list[tuple[str, list[Head]]]:
    heads = range(subject.heads)
    if spec.each == "layer":
        return [(str(l), [(l, h) for h in heads]) for l in range(subject.layers)]
    return [(f"{l}-{h}", [(l, h)]) for l in range(subject.layers) for h in heads]


def _encode_text(spec: DeconstructionSpec, subject: StudiedModel) -> list[int]:
    ids = subject.encode(spec.text, most=MAX_TOKENS)
    if len(ids) < 2:
        raise InvalidOption("text has one token; two are the least.", field="text")
    return ids


def _windows(spec: DeconstructionSpec, subject: StudiedModel, size: int) -> list[list[int]]:
    """The corpus in windows as long as the text."""
    if "average" not in spec.kinds:
        return []
    ids = subject.tokenizer.encode(spec.corpus or "")
    windows = [ids[start : start + size] for start in range(0, len(ids) - size + 1, size)]
    if not windows:
        detail = f"average needs a corpus of at least the text's {size} tokens; it has {len(ids)}."
        raise InvalidOption(detail, field="corpus")
    return windows


def _average_patterns(spec: DeconstructionSpec, subject: StudiedModel, size: int) -> dict[int, Tensor]:
    """Mean pattern of the corpus per layer, [H,T,T]."""
    windows = _windows(spec, subject, size)
    mean = {l: torch.zeros(subject.heads, size, size) for l in range(subject.layers)} if windows else {}

    def visit(layer: int, start: int, rows: Tensor) -> None:
        mean[layer][:, start : start + rows.shape[2], : rows.shape[3]] += rows[0].float().cpu() / len(windows)

    for window in windows:
        visit_patterns(subject.model, subject.tensor([window]), visit)
    return mean
