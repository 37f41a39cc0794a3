"""Simplified attention as the decoder's `attend`: uniform, identity, a fixed pattern, another layer's, or rectified.

"Deconstructing Attention" (2025). Knows the attention seam; knows no text and no report.
"""

from collections.abc import Collection, Sequence
from typing import Literal

import torch
from torch import Tensor

from shared.lm.attention import DenseAttention, causal_mask, patterns, scores, sdpa
from shared.lm.host_transfer import take_rows

Relaxation = Literal["uniform", "identity", "average", "earlier", "relu"]
"""Uniform over all visible tokens; the token's own value only; a fixed pattern; an earlier layer's queries and keys;
rectified scores instead of a softmax."""

Head = tuple[int, int]


class SimplifiedAttention:
    """Causal attention in which some heads are simplified."""

    def __init__(
        self,
        kind: Relaxation,
        heads: Collection[Head],
        *,
        fixed: dict[int, Tensor] | None = None,
        back: int = 1,
        windows: Sequence[int | None] | None = None,
    ) -> None:
        """Simplify `heads` (layer, head); `average` needs `fixed`, layer → [H,T,T]; `earlier` goes `back` layers.

        `windows` says per layer how many tokens a token sees, itself included; None sees all.
        """
        self._kind, self._heads, self._fixed, self._back = kind, frozenset(heads), fixed or {}, back
        self._dense = DenseAttention(windows=windows)
        self._earlier: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, offset: int) -> Tensor:
        """Mix values; see `shared.lm.attention.AttentionFn`."""
        keys, values = self._dense.remember(layer, k, v, offset)
        if self._kind == "earlier":
            self._earlier[layer] = (q, keys)
        z = sdpa(q, keys, values, window=self._dense.window(layer))
        heads = sorted(head for l, head in self._heads if l == layer)
        if not heads:
            return z
        group = q.shape[2] // keys.shape[1]
        rows = take_rows(self._rows(layer, q, keys), heads, 1)
        mixed, z = rows @ torch.stack([values[:, head // group] for head in heads], 1), z.clone()
        for i, head in enumerate(heads):
            z[:, :, head] = mixed[:, i]
        return z

    def _rows(self, layer: int, q: Tensor, keys: Tensor) -> Tensor:
        """Pattern rows of all heads [B,H,T,T]."""
        B, T, H, _ = q.shape
        mask = causal_mask(torch.arange(T, device=q.device), T, None, self._dense.window(layer))
        if self._kind == "identity":
            return torch.eye(T, dtype=q.dtype, device=q.device).expand(B, H, T, T)
        if self._kind == "uniform":
            uniform = mask.to(q.dtype)
            return (uniform / uniform.sum(-1, keepdim=True)).expand(B, H, T, T)
        if self._kind == "average":
            return self._fixed[layer][:, :T, :T].to(q).expand(B, H, T, T)
        if self._kind == "earlier":
            return patterns(scores(*self._earlier[max(layer - self._back, 0)], mask))
        positive = scores(q, keys, mask).clamp(min=0).masked_fill(~mask, 0.0)
        total = positive.sum(-1, keepdim=True)
        # A row without a positive score keeps what it has: the token itself.
        own = torch.eye(T, dtype=q.dtype, device=q.device)
        return torch.where(total > 0, positive / total.clamp(min=1e-12), own)
