"""Attention experiment: pattern rows of chosen layers, heads and queries, whole or reduced, with their tokens.

Answers that are too large are refused before they are computed, with the sizes and the ways out. Knows one text.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from fovea.errors import InvalidOption, TooLarge
from services.interpretability.attention.pattern_capture import visit_patterns
from services.interpretability.core.experiment import EXAMPLE_LM, NO_GRAPH, Cost, Experiment, Progress, Spec
from services.interpretability.core.report import Axis, HeatMap, Report, Scalar, Strip, TokenSpan, to_matrix
from services.interpretability.core.studied_model import StudiedModel
from shared.lm.host_transfer import take_rows
from shared.registry import Card, Paper

MAX_CELLS = 4_000_000
"""Cells of an answer: L·H·queries·T."""


class Message(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: str = Field(max_length=40)
    content: str = Field(max_length=200_000)


class AttentionPatternsSpec(Spec):
    """Text, tokens or conversation; layers, heads and queries; and the reduction over heads."""

    text: str | None = Field(None, max_length=200_000, description="A text.")
    ids: list[int] | None = Field(None, max_length=32_768, description="Tokens instead of a text.")
    messages: list[Message] | None = Field(None, max_length=200, description="A conversation under the chat template.")
    layers: list[int] | None = Field(None, max_length=512, description="Left out, all.")
    heads: list[int] | None = Field(None, max_length=512, description="Left out, all.")
    queries: list[int] | None = Field(
        None, max_length=32_768, description="Positions whose rows are kept; left out, all."
    )
    reduce: Literal["none", "mean", "max", "rollout"] = Field(
        "none", description="Over the heads of a layer: keep all, mean, maximum, or rollout through the layers."
    )


class AttentionPatterns(Experiment[AttentionPatternsSpec]):
    """Returns pattern rows as numbers and heat maps."""

    In = AttentionPatternsSpec
    mode = "sync"
    route: ClassVar[str] = "attention"
    card: ClassVar[Card] = Card(
        name="attention",
        task="probe",
        licence="Apache-2.0",
        summary="Shows which tokens the heads of a text look at, row by row.",
        paper=Paper(
            title="Quantifying Attention Flow in Transformers (rollout)",
            venue="ACL",
            year=2020,
            url="https://arxiv.org/abs/2005.00928",
        ),
        notes=(
            "Rows are computed in blocks next to the fast kernel: a long text with few queries costs a plain forward.",
            "A wide row is not an explanation; what a head writes is found by attribution and patching.",
            NO_GRAPH,
        ),
        example={"lm": EXAMPLE_LM, "seed": 0, "text": "kqzwxm kqzwx", "layers": [1, 2]},
    )

    def cost(self, spec: AttentionPatternsSpec, subject: StudiedModel) -> Cost:
        return Cost(1, len(_encode_input(spec, subject)))

    def run(self, spec: AttentionPatternsSpec, subject: StudiedModel, progress: Progress) -> Report:
        ids = _encode_input(spec, subject)
        layers = _resolve_indices(spec.layers, subject.layers, "layers")
        heads = _resolve_indices(spec.heads, subject.heads, "heads")
        queries = _resolve_indices(spec.queries, len(ids), "queries")
        if spec.reduce == "rollout":
            layers, queries_kept = list(range(subject.layers)), list(range(len(ids)))
        else:
            queries_kept = queries
        _check_size(len(layers), len(heads), len(queries_kept), len(ids))
        rows = read_rows(subject, ids, layers, heads, queries_kept)
        tokens = subject.token_spans(ids)
        return Report(
            title="Attention",
            scalars={"tokens": Scalar(value=len(ids)), "queries": Scalar(value=len(queries))},
            grids=_grids(spec, rows, layers, heads, queries, tokens),
            strips=[
                Strip(
                    name="seen",
                    tokens=tokens,
                    values=rows.mean((0, 1, 2)).tolist(),
                    caption="Each token, shaded by the mean attention that it gets from the rows that were asked for.",
                )
            ],
        )


def read_rows(
    subject: StudiedModel, ids: list[int], layers: list[int], heads: list[int], queries: list[int]
) -> np.ndarray:
    """Read pattern rows [layers, heads, queries, T] in float32; nothing else is kept."""
    table = np.zeros((len(layers), len(heads), len(queries), len(ids)), np.float32)
    index = {query: i for i, query in enumerate(queries)}

    def visit(layer: int, start: int, rows: Tensor) -> None:
        inside = [t for t in range(rows.shape[2]) if start + t in index]
        if inside:
            kept = take_rows(take_rows(rows[0], heads), inside, 1).float().cpu().numpy()
            table[layers.index(layer)][:, [index[start + t] for t in inside], : rows.shape[3]] = kept

    visit_patterns(subject.model, subject.tensor([ids]), visit, layers=layers)
    return table


def rollout(patterns: np.ndarray) -> np.ndarray:
    """Multiply attention through the layers [L,T,T] → [T,T]; half of each is the residual stream (2020, section 3)."""
    identity, total = np.eye(patterns.shape[-1]), np.eye(patterns.shape[-1])
    for layer in patterns.astype(np.float64):
        total = (0.5 * layer + 0.5 * identity) @ total
    return total


def _grids(
    spec: AttentionPatternsSpec,
    rows: np.ndarray,
    layers: list[int],
    heads: list[int],
    queries: list[int],
    tokens: list[TokenSpan],
) -> list[HeatMap]:
    axes = {
        "rows": Axis(label="query", ticks=[f"{q} {tokens[q].text}" for q in queries]),
        "columns": Axis(label="key", ticks=[f"{t} {token.text}" for t, token in enumerate(tokens)]),
    }
    how = "A row is one query: how its attention is spread over what came before; it adds up to 1."
    if spec.reduce == "rollout":
        whole = rollout(rows.mean(1))[queries]
        return [
            HeatMap(name="rollout", values=to_matrix(whole), **axes, caption=f"Attention through all layers. {how}")
        ]
    if spec.reduce != "none":
        combine = np.mean if spec.reduce == "mean" else np.max
        return [
            HeatMap(name=f"layer {layer} {spec.reduce}", values=to_matrix(combine(of, axis=0)), **axes, caption=how)
            for layer, of in zip(layers, rows, strict=True)
        ]
    return [
        HeatMap(name=f"{layer}-{head}", values=to_matrix(rows[i, j]), **axes, caption=how)
        for i, layer in enumerate(layers)
        for j, head in enumerate(heads)
    ]


def _encode_input(spec: AttentionPatternsSpec, subject: StudiedModel) -> list[int]:
    given = [name for name in ("text", "ids", "messages") if getattr(spec, name) is not None]
    if len(given) != 1:
        detail = "Give one of text, ids and messages."
        raise InvalidOption(detail, field="text")
    if spec.ids is not None:
        if not spec.ids or not all(0 <= i < subject.model.config.vocab for i in spec.ids):
            detail = f"ids must hold tokens 0…{subject.model.config.vocab - 1}."
            raise InvalidOption(detail, field="ids")
        subject.check_window(len(spec.ids), "ids")
        return list(spec.ids)
    if spec.messages is not None:
        text = subject.tokenizer.chat([m.model_dump() for m in spec.messages])
        return subject.encode(text, "messages", special=False)
    return subject.encode(spec.text or "")


def _resolve_indices(wanted: list[int] | None, size: int, field: str) -> list[int]:
    if wanted is None:
        return list(range(size))
    if not wanted or any(not -size <= one < size for one in wanted):
        detail = f"{field} must name some of 0…{size - 1}."
        raise InvalidOption(detail, field=field)
    return sorted({one % size for one in wanted})


def _check_size(layers: int, heads: int, queries: int, tokens: int) -> None:
    cells = layers * heads * queries * tokens
    if cells > MAX_CELLS:
        detail = (
            f"The answer would hold L·H·queries·T = {layers}·{heads}·{queries}·{tokens} = {cells:,} cells; "
            f"at most {MAX_CELLS:,} are sent."
        )
        raise TooLarge(detail, hint="Slice layers and heads, or name the query positions in queries.", field="queries")
