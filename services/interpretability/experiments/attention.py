"""Attention experiment: pattern rows of chosen layers, heads and queries, whole or reduced, with their tokens.

Answers that are too large are refused before they are computed, with the sizes and the ways out. Knows one text.
"""

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from fovea.errors import InvalidOption, TooLarge
from services.interpretability.attention.pattern_capture import visit_patterns
from services.interpretability.core.experiment import Cost, Experiment, Progress, Spec, probe_card
from services.interpretability.core.report import Report, Scalar, Strip, heat_map
from services.interpretability.core.studied_model import StudiedModel
from shared.lm.host_transfer import take_rows
from shared.registry import Paper

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
    route = "attention"
    card = probe_card(
        "attention",
        "Shows which tokens the heads of a text look at, row by row.",
        Paper.on_arxiv("Quantifying Attention Flow in Transformers (rollout)", 2020, "2005.00928", "ACL"),
        "Rows are computed in blocks next to the fast kernel: a long text with few queries costs a plain forward.",
        "A wide row is not an explanation; what a head writes is found by attribution and patching.",
        text="kqzwxm kqzwx",
        layers=[1, 2],
    )

    def cost(self, spec: AttentionPatternsSpec, subject: StudiedModel) -> Cost:
        return Cost(1, len(_encode_input(spec, subject)))

    def run(self, spec: AttentionPatternsSpec, subject: StudiedModel, progress: Progress) -> Report:
        ids = _encode_input(spec, subject)
        layers = resolve_indices(spec.layers, subject.layers, "layers")
        heads = resolve_indices(spec.heads, subject.heads, "heads")
        queries = kept = resolve_indices(spec.queries, len(ids), "queries")
        if spec.reduce == "rollout":
            layers, kept = list(range(subject.layers)), list(range(len(ids)))
        _check_size(len(layers), len(heads), len(kept), len(ids))
        rows, tokens = read_rows(subject, ids, layers, heads, kept), subject.token_spans(ids)
        seen = "Each token, shaded by the mean attention that it gets from the rows that were asked for."
        through = "Attention through all layers. " if spec.reduce == "rollout" else ""
        how = f"{through}A row is one query: how its attention is spread over what came before; it adds up to 1."
        ticks = [f"{t} {token.text}" for t, token in enumerate(tokens)]
        axes = ("query", [ticks[q] for q in queries]), ("key", ticks)
        maps = _name_maps(spec, rows, layers, heads, queries)
        return Report(
            title="Attention",
            scalars={"tokens": Scalar(value=len(ids)), "queries": Scalar(value=len(queries))},
            grids=[heat_map(name, values, *axes, how) for name, values in maps.items()],
            strips=[Strip(name="seen", tokens=tokens, values=np.mean([*maps.values()], (0, 1)).tolist(), caption=seen)],
        )


def read_rows(
    subject: StudiedModel, ids: list[int], layers: list[int], heads: list[int], queries: list[int]
) -> np.ndarray:
    """Read pattern rows [layers, heads, queries, T] in float32; nothing else is kept."""
    table = np.zeros((len(layers), len(heads), len(queries), len(ids)), np.float32)
    index = {query: i for i, query in enumerate(queries)}

    def visit(layer: int, start: int, rows: Tensor) -> None:
        if inside := [t for t in range(rows.shape[2]) if start + t in index]:
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


def _name_maps(
    spec: AttentionPatternsSpec, rows: np.ndarray, layers: list[int], heads: list[int], queries: list[int]
) -> dict[str, np.ndarray]:
    """Maps of the report by name, [queries, T] each."""
    if spec.reduce == "rollout":
        return {"rollout": rollout(rows.mean(1))[queries]}
    if spec.reduce == "none":
        return {f"{l}-{h}": rows[i, j] for i, l in enumerate(layers) for j, h in enumerate(heads)}
    combined = rows.mean(1) if spec.reduce == "mean" else rows.max(1)
    return {f"layer {layer} {spec.reduce}": of for layer, of in zip(layers, combined, strict=True)}


def _encode_input(spec: AttentionPatternsSpec, subject: StudiedModel) -> list[int]:
    if sum(getattr(spec, name) is not None for name in ("text", "ids", "messages")) != 1:
        raise InvalidOption("Give one of text, ids and messages.", field="text")
    if spec.ids is not None:
        if not spec.ids or not all(0 <= i < subject.model.config.vocab for i in spec.ids):
            raise InvalidOption(f"ids must hold tokens 0…{subject.model.config.vocab - 1}.", field="ids")
        subject.check_window(len(spec.ids), "ids")
        return list(spec.ids)
    if spec.messages is not None:
        text = subject.tokenizer.chat([m.model_dump() for m in spec.messages])
        return subject.encode(text, "messages", special=False)
    return subject.encode(spec.text or "")


def resolve_indices(wanted: list[int] | None, size: int, field: str) -> list[int]:
    """Return the indices below `size`, ascending; negative ones are from the end, None is all; else InvalidOption."""
    if wanted is not None and (not wanted or any(not -size <= one < size for one in wanted)):
        raise InvalidOption(f"{field} must name some of 0…{size - 1}.", field=field)
    return sorted({one % size for one in (range(size) if wanted is None else wanted)})


def _check_size(layers: int, heads: int, queries: int, tokens: int) -> None:
    cells = layers * heads * queries * tokens
    if cells > MAX_CELLS:
        sizes = f"L·H·queries·T = {layers}·{heads}·{queries}·{tokens} = {cells:,}"
        detail = f"The answer would hold {sizes} cells; at most {MAX_CELLS:,} are sent."
        raise TooLarge(detail, hint="Slice layers and heads, or name the query positions in queries.", field="queries")
