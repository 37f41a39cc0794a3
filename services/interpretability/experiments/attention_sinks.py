"""Attention-sinks experiment: positions that a head attends to from everywhere, whatever they hold (ACT, 2024).

Only the analysis is here; calibrating sinks away is a method of llm-longctx. Knows patterns and texts.
"""

from collections import Counter
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fovea.errors import InvalidOption
from services.interpretability.attention.pattern_capture import ColumnMaskedAttention, visit_patterns
from services.interpretability.core.experiment import Cost, Experiment, Progress, Spec, probe_card
from services.interpretability.core.losses import token_losses
from services.interpretability.core.report import Bar, Bars, Report, Scalar, Strip, Table, head_map
from services.interpretability.core.studied_model import StudiedModel
from services.interpretability.experiments.attention import resolve_indices
from shared.registry import Paper

MIN_TOKENS = 16
"""Tokens below which a column's mean says nothing."""

MAX_TABLE_ROWS = 12
"""Rows of the table of positions."""


def column_mass(pattern: Any) -> Any:
    """Compute m_j = Σ_i P[i,j] / (T − j): the mean attention that a token gets from the queries that can see it.

    Causal rows are [...,T,S], numpy or torch; with S > T the first S − T keys are cached ones. Returns float64 [...,S].
    """
    rows = torch.as_tensor(pattern).double()
    T, S = rows.shape[-2:]
    queries = torch.minimum(torch.arange(S, 0, -1, device=rows.device), torch.tensor(T, device=rows.device))
    mass = rows.sum(-2) / queries
    return mass if isinstance(pattern, Tensor) else mass.numpy()


def sinks(pattern: Any, threshold: float = 0.1, tail: int = 0) -> list[list[int]]:
    """Return, per head of rows [H,T,T], the positions whose mass exceeds the threshold, less the `tail` last."""
    return [_positions_above(m.numpy(), threshold, tail) for m in torch.as_tensor(column_mass(pattern)).detach().cpu()]


def _positions_above(mass: np.ndarray, threshold: float, tail: int) -> list[int]:
    return [int(j) for j in np.flatnonzero(mass > threshold) if j < len(mass) - tail]


class SinksSpec(Spec):
    """Text, and what counts as a sink."""

    text: str = Field(description="At least 16 tokens.", max_length=200_000)
    threshold: float = Field(0.1, gt=0, lt=1, description="Mean attention above which a position is a sink.")
    tail: int = Field(5, ge=0, le=1000, description="Last positions that are left out: few queries see them.")
    remove: int | None = Field(None, ge=0, description="Hide this position from `heads` and say what that costs.")
    heads: list[list[int]] = Field(
        default_factory=list, max_length=4096, description="[layer, head] pairs for `remove`; left out, all heads."
    )


class AttentionSinks(Experiment[SinksSpec]):
    """Finds the sinks of a text, and how many heads attend to them."""

    In = SinksSpec
    mode = "sync"
    route = "sinks"
    card = probe_card(
        "attention-sinks",
        "Shows the positions of a text that attention heads look at from everywhere.",
        Paper.on_arxiv(
            "Unveiling and Harnessing Hidden Attention Sinks: Enhancing Large Language Models without Training "
            "through Attention Calibration",
            2024,
            "2406.15765",
            "ICML",
        ),
        "The measuring tool only; calibration itself is a method of llm-longctx.",
        "Removing a sink is a what-if: the row is renormalised without it. It is not the paper's tuned procedure.",
        text="The heron waits. The heron waits in the reeds, and the reeds wait for the wind.",
    )

    def cost(self, spec: SinksSpec, subject: StudiedModel) -> Cost:
        ids = _encode_text(spec, subject)
        return Cost(1, len(ids)) * (1 if spec.remove is None else 3)

    def run(self, spec: SinksSpec, subject: StudiedModel, progress: Progress) -> Report:
        ids = _encode_text(spec, subject)
        mass = column_masses(subject, ids)
        sinks_of = [[_positions_above(head, spec.threshold, spec.tail) for head in layer] for layer in mass]
        counts = Counter(j for layer in sinks_of for head in layer for j in head)
        everyone, tokens = subject.layers * subject.heads, subject.token_spans(ids)
        sinking = [counts[j] for j in range(len(ids))]
        shaded = "Each token, shaded by the number of heads that sink into it."
        first = sum(0 in head for layer in sinks_of for head in layer)
        later = sum(any(head) for layer in sinks_of for head in layer)
        numbers = [[len(head) for head in layer] for layer in sinks_of]
        maps = {
            "sinks": (numbers, f"Sinks per head: positions with mean attention above {spec.threshold:g}."),
            "first_token_mass": (mass[:, :, 0], "Mean attention that each head gives to the first token."),
        }
        by_layer = "Attention to the first token per layer: mean of its heads, and their range."
        bars = [
            Bar(label=str(l), value=float(m.mean()), low=float(m.min()), high=float(m.max()))
            for l, m in enumerate(mass[:, :, 0])
        ]
        return Report(
            title="Attention sinks",
            scalars={
                "tokens": Scalar(value=len(ids)),
                "heads_with_sink_at_first": Scalar(value=first, note=f"of {everyone} heads"),
                "share_with_sink_at_first": Scalar(value=first / everyone),
                "share_with_later_sink": Scalar(value=later / everyone, note="A sink anywhere but on the first token."),
                **_measure_removal(spec, subject, ids),
            },
            tables=_tables(counts, [token.text for token in tokens]),
            grids=[head_map(name, values, caption, text=spec.text) for name, (values, caption) in maps.items()],
            bars=[Bars(name="first_token_mass_by_layer", unit="mean attention", bars=bars, caption=by_layer)],
            strips=[Strip(name="heads_sinking", tokens=tokens, values=sinking, caption=shaded)],
        )


def column_masses(subject: StudiedModel, ids: list[int]) -> np.ndarray:
    """Measure the column mass of every head over a text: float64 [L,H,T]."""
    sums = np.zeros((subject.layers, subject.heads, T := len(ids)))

    def visit(layer: int, _start: int, rows: Tensor) -> None:
        sums[layer, :, : rows.shape[-1]] += rows[0].double().sum(1).cpu().numpy()

    visit_patterns(subject.model, subject.tensor([ids]), visit)
    windows = [T if window is None else window for window in subject.model.config.windows or [None] * subject.layers]
    return np.asarray(sums / np.minimum(np.arange(T, 0, -1), np.array(windows)[:, None])[:, None])


def _encode_text(spec: SinksSpec, subject: StudiedModel) -> list[int]:
    ids = subject.encode(spec.text)
    if len(ids) < MIN_TOKENS:
        detail = f"text has {len(ids)} tokens; below {MIN_TOKENS} a column's mean says nothing."
        raise InvalidOption(detail, field="text")
    if spec.remove is not None:
        resolve_indices([spec.remove], len(ids), "remove")
    return ids


def _measure_removal(spec: SinksSpec, subject: StudiedModel, ids: list[int]) -> dict[str, Scalar]:
    if spec.remove is None:
        return {}
    heads = subject.check_heads(spec.heads or subject.complement([]))
    row = subject.tensor([ids])
    before = float(token_losses(subject.model, row).mean())
    without = ColumnMaskedAttention([spec.remove], heads, subject.model.config.windows)
    after = float(token_losses(subject.model, row, attend=without).mean())
    hidden = f"Position {spec.remove} hidden from {len(heads)} heads."
    return {
        "nll": Scalar(value=before, unit="nats/token", note="As it is."),
        "nll_without": Scalar(value=after, unit="nats/token", note=hidden),
        "nll_change": Scalar(value=after - before, unit="nats/token"),
    }


def _tables(counts: Counter[int], texts: list[str]) -> list[Table]:
    kinds: Counter[str] = Counter()
    for j, n in counts.items():
        kinds[_token_kind(texts[j], j)] += n
    positions = [[j, texts[j], _token_kind(texts[j], j), n] for j, n in counts.most_common(MAX_TABLE_ROWS)]
    by_number = "Positions by the number of heads that sink into them."
    in_other_texts = "The same kind of token sinks in other texts, too; compare before you name a position."
    return [
        Table.of("positions", "position, token, kind, heads", positions, by_number),
        Table.of("by_kind", "kind, sinks", kinds.most_common(), in_other_texts),
    ]


def _token_kind(text: str, position: int) -> str:
    bare = text.strip().lower()
    if position == 0:
        return "first token"
    if "\n" in text:
        return "line break"
    if bare in {"the", "a", "an"}:
        return "article"
    return "word" if any(letter.isalnum() for letter in bare) else "punctuation" if bare else "space"
