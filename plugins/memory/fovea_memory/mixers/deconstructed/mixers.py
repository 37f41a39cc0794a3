"""Deconstructed mixers: seven ways to mix tokens, each without one ingredient of attention (arXiv:2510.11602).

`standard` has them all. `mlp` mixes nothing; `approximate` is the second-order Taylor form of the softmax; in
`nonapproximate` the score depends on the key alone; `random_qk`, `fixed_qk` and `static_qk` take queries and keys from
noise, from a fixed text, and from the token embeddings. H is a layer's input [B,L,D] behind its norm; h heads, d = D/h.

Knows maps and recurrences as functions of weights; models are in `networks`.
"""

import copy
import math
from collections.abc import Mapping
from typing import Literal, Self

import torch
from torch import Tensor
from torch.nn import functional

Variant = Literal["standard", "mlp", "approximate", "nonapproximate", "random_qk", "fixed_qk", "static_qk"]
Layout = Literal["uniform", "hybrid", "skip"]
Weights = Mapping[str, Tensor]


def mix(variant: Variant, hidden: Tensor, weights: Weights, heads: int, source: Tensor | None = None) -> Tensor:
    """A mixer's output [B,L,D], without positions.

    Args:
        variant: Which mixer.
        hidden: H [B,L,D]; its dtype is that of the answer.
        weights: `{q,k,v,o}_proj.weight`, or `{gate,up,down}_proj.weight` for `mlp`; others are ignored.
        heads: h.
        source: Where queries and keys come from: the fixed stream's hidden states [L,D] for `random_qk` and `fixed_qk`,
            the token embeddings [B,L,D] for `static_qk`.
    """
    if variant == "mlp":
        gate, up, down = (weights[f"{name}_proj.weight"].to(hidden.dtype) for name in ("gate", "up", "down"))
        return (functional.silu(hidden @ gate.T) * (hidden @ up.T)) @ down.T
    v = _heads(hidden @ weights["v_proj.weight"].to(hidden.dtype).T, heads)
    mixed = attention_map(variant, hidden, weights, heads, source).to(hidden.dtype) @ v
    return mixed.transpose(1, 2).flatten(2) @ weights["o_proj.weight"].to(hidden.dtype).T


def attention_map(
    variant: Variant, hidden: Tensor, weights: Weights, heads: int, source: Tensor | None = None
) -> Tensor:
    """The causal map A [B,h,L,L]; rows sum to 1. Arguments as in `mix`.

    Raises:
        ValueError: `mlp` has no map, or a variant lacks its source, or the source is shorter than the input.
    """
    source = select_source(variant, hidden, source)
    q, k = (_heads(source @ weights[f"{name}_proj.weight"].to(hidden.dtype).T, heads) for name in "qk")
    return compute_map(variant, q, k).expand(hidden.shape[0], -1, -1, -1)


def select_source(variant: Variant, hidden: Tensor, source: Tensor | None) -> Tensor:
    """Input of the query and key projections [B|1,L,D]."""
    if variant == "mlp":
        raise ValueError("mlp mixes no tokens and has no attention map")
    if variant not in {"random_qk", "fixed_qk", "static_qk"}:
        return hidden
    if source is None:
        raise ValueError(f"{variant} needs a source of queries and keys")
    source = source.to(hidden.dtype) if variant == "static_qk" else source.to(hidden.dtype)[None]
    if source.shape[1] < hidden.shape[1]:
        raise ValueError(f"the fixed stream has {source.shape[1]} tokens, the input {hidden.shape[1]}")
    return source[:, : hidden.shape[1]]


def compute_map(variant: Variant, q: Tensor, k: Tensor) -> Tensor:
    """Attention map [B,h,L,L] of queries and keys [B,h,L,d]."""
    L, d = q.shape[-2:]
    later = torch.ones(L, L, dtype=torch.bool, device=q.device).triu(1)
    if variant == "nonapproximate":
        s = ((functional.silu(q) * k).sum(-1) / math.sqrt(d))[..., None, :].expand(*q.shape[:-1], L)
        return s.masked_fill(later, -torch.inf).softmax(-1)
    s = q @ k.mT / math.sqrt(d)
    if variant != "approximate":
        return s.masked_fill(later, -torch.inf).softmax(-1)
    taylor = (1 + s + s * s / 2).masked_fill(later, 0)  # of even order, so at least a half wherever it counts
    return taylor / taylor.sum(-1, keepdim=True)


class Recurrence:
    """Recurrent form of `approximate` and `nonapproximate`: token by token with a state of constant size.

    Args:
        variant: Which of the two.
        weights: As in `mix`.
        heads: h.
        batch: B.

    Raises:
        ValueError: Another variant: it has no state of constant size.
    """

    def __init__(self, variant: Variant, weights: Weights, heads: int, batch: int) -> None:
        if variant not in {"approximate", "nonapproximate"}:
            raise ValueError(f"{variant} has no recurrence of constant size; approximate and nonapproximate have")
        self.variant, self.heads = variant, heads
        self._weights = weights
        like = weights["v_proj.weight"]
        d = like.shape[0] // heads
        rows = 1 + d + d * d if variant == "approximate" else 1
        self._sum = like.new_zeros(batch, heads, rows, d + 1)
        self._peak = like.new_full((batch, heads, 1, 1), -torch.inf)

    def step(self, x: Tensor) -> Tensor:
        """The next output [B,D] for the next input x [B,D]."""
        q, k, v = (_heads((x @ self._weights[f"{n}_proj.weight"].T)[:, None], self.heads) for n in "qkv")
        return self.step_heads(q, k, v).transpose(1, 2).flatten(1) @ self._weights["o_proj.weight"].T

    def step_heads(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As `step`, from heads [B,h,1,d] to heads."""
        if self.variant == "approximate":
            self._sum = self._sum + _features(k, keys=True).mT @ _append_one(v)
            mass = _features(q, keys=False) @ self._sum
        else:
            # A running maximum, never a constant: any constant overflows or vanishes for some input.
            score = (functional.silu(q) * k).sum(-1, keepdim=True) * q.shape[-1] ** -0.5
            peak = torch.maximum(self._peak, score)
            self._sum = self._sum * (self._peak - peak).exp() + _append_one(v) * (score - peak).exp()
            self._peak, mass = peak, self._sum
        return mass[..., :-1] / mass[..., -1:]

    def fork(self) -> Self:
        """An independent copy; states are never changed in place, so a shallow one will do."""
        return copy.copy(self)

    def state_bytes(self) -> int:
        """Bytes of the state."""
        return self._sum.nbytes + (self._peak.nbytes if self.variant == "nonapproximate" else 0)


def layout(kind: Layout, layers: int, variant: Variant) -> list[str]:
    """Mixer of each layer.

    `uniform` is the variant everywhere; `hybrid` has it in the 1st, 3rd, 5th … and standard attention between; `skip`
    is the hybrid without the variant's layers, which is tried at test time.
    """
    odd = {"uniform": variant, "hybrid": variant, "skip": "skip"}[kind]
    return [odd if i % 2 == 0 or kind == "uniform" else "standard" for i in range(layers)]


def cache_bytes(variant: Variant, batch: int, length: int, width: int, heads: int, itemsize: int) -> int:
    """Bytes of a layer's state in decoding: the paper's formulas.

    For `approximate` it is what the recurrence really holds; the paper leaves out the second-order term.
    """
    B, L, D, d = batch, length, width, width // heads
    items = {
        "standard": 2 * B * L * D,
        "static_qk": 2 * B * L * D,
        "mlp": 0,
        "approximate": B * heads * (1 + d + d * d) * (d + 1),
        "nonapproximate": B * D + 2 * B * heads,
        "random_qk": (B + 1) * L * D,
        "fixed_qk": (B + 1) * L * D,
    }
    return itemsize * items[variant]


def _heads(x: Tensor, heads: int) -> Tensor:
    """[B,L,D] → [B,h,L,d]."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def _features(x: Tensor, *, keys: bool) -> Tensor:
    """Features whose products are 1 + s + s²/2: [1, x, vec(x xᵀ)], scaled on the side of the keys."""
    outer = (x[..., :, None] * x[..., None, :]).flatten(-2)
    one = torch.ones_like(x[..., :1])
    d = x.shape[-1]
    return torch.cat((one, x * d**-0.5, outer / (2 * d)) if keys else (one, x, outer), -1)


def _append_one(v: Tensor) -> Tensor:
    """Values with a 1 behind them, which sums the weights."""
    return torch.cat((v, torch.ones_like(v[..., :1])), -1)
