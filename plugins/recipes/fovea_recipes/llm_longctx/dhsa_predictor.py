"""DHSA's boundary predictor: a small network that sees the keys around a gap and says whether a chunk begins there.

It stands in for the mass ratios, which need the whole attention map; its raw logits go through the same selection.
Section 1 of the spec. Knows keys, windows and labels; knows no decoder and no engine.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.llm_longctx.methods.dhsa.chunks import select_boundaries

_OUTSIDE = -100.0
"""Logit of gaps at the ends, where no window fits."""


class _Encoder(nn.Module):
    """One self-attention layer over the window, then a norm; no residual."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Windows [n,2w,C] → [n,2w,C]."""
        mixed, _ = self.mha(x, x, x, need_weights=False)
        normed: Tensor = self.norm(mixed)
        return normed


class BoundaryPredictor(nn.Module):
    """Keys [N,C] of one layer, all key/value heads side by side → a logit per gap [N].

    C is G times the head width; `window` is w, tokens on each side of a gap.
    """

    def __init__(self, channels: int, window: int = 4, heads: int = 4, hidden: int = 256) -> None:
        super().__init__()
        self.window = window
        self.enc = _Encoder(channels, heads)
        self.mlp = nn.Sequential(nn.Linear(4 * channels + 1, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, keys: Tensor) -> Tensor:
        """Logits [N]: entry i is the gap behind token i; what lacks a whole window is far below every threshold."""
        N, w = len(keys), self.window
        padded = functional.pad(keys, (0, 0, w - 1, w))
        x = self.enc(padded.unfold(0, 2 * w, 1)[:N].transpose(1, 2))
        left, right = x[:, :w].mean(1), x[:, w:].mean(1)
        alike = functional.cosine_similarity(left, right, dim=-1)[:, None]
        logits: Tensor = self.mlp(torch.cat((left, right, (left - right).abs(), left * right, alike), -1))[:, 0]
        at = torch.arange(N, device=keys.device)
        return logits.masked_fill((at < 2 * w - 1) | (at >= N - 2 * w), _OUTSIDE)


def predict_boundaries(
    predictor: BoundaryPredictor, keys: Tensor, *, theta: float = 0.0, limit: int = 1 << 30, instruction: int = 64
) -> list[int]:
    """Chunk borders of a text whose keys [N,C] are known, 0 and N included; `theta` compares with a logit."""
    with torch.no_grad():
        return select_boundaries(predictor(keys), theta, limit, instruction=instruction)


def targets(ratios: Tensor) -> Tensor:
    """Labels of mass ratios [N], 0 or 1: sigmoid(2 (ln r - ln 2)) cut at one half, which is r >= 2."""
    soft = torch.sigmoid(2 * (ratios.clamp_min(1e-12).log() - math.log(2.0)))
    return (soft >= 0.5).to(ratios.dtype)


def focal_loss(logits: Tensor, labels: Tensor, gamma: float = 2.0, positive: float = 1.3) -> Tensor:
    """Binary cross-entropy that looks away from what is easy; positives weigh `positive`."""
    chance = torch.sigmoid(logits)
    right = torch.where(labels > 0.5, chance, 1 - chance)
    weight = torch.where(labels > 0.5, positive, 1.0)
    plain = functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
    return (weight * (1 - right) ** gamma * plain).mean()


def train(
    predictor: BoundaryPredictor,
    texts: Iterable[tuple[Tensor, Tensor]],
    *,
    rate: float = 1e-4,
    on_step: Callable[[int, float], None] | None = None,
) -> BoundaryPredictor:
    """Adam on (keys [N,C], ratios [N]) pairs, one text a step; gaps without a whole window don't count.

    The predictor is trained in place; ratios are those of `mass_ratios`. `on_step` gets each step and its loss.
    """
    optimiser = torch.optim.Adam(predictor.parameters(), lr=rate)
    predictor.train()
    for step, (keys, ratios) in enumerate(texts):
        logits = predictor(keys)
        inside = logits > _OUTSIDE / 2
        loss = focal_loss(logits[inside], targets(ratios)[inside])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        optimiser.step()
        if on_step is not None:
            on_step(step, float(loss.detach()))
    return predictor.eval()


@dataclass(frozen=True, slots=True)
class BorderAgreement:
    """How well predicted borders meet those from attention; the two ends, which are always there, don't count."""

    precision: float
    recall: float
    f1: float
    overlap: float


def agreement(found: Sequence[int], wanted: Sequence[int]) -> BorderAgreement:
    """Precision, recall, F1 and overlap (shared over all) of two sets of borders, ends included in both."""
    ours, theirs = set(found[1:-1]), set(wanted[1:-1])
    shared, either = len(ours & theirs), len(ours | theirs)
    precision = shared / len(ours) if ours else float(not theirs)
    recall = shared / len(theirs) if theirs else 1.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return BorderAgreement(precision, recall, f1, shared / either if either else 1.0)
