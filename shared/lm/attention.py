"""Causal attention over the cache: the decoder's default, in two kernels.

`sdpa` is torch's fused kernel, with grouped heads and never a repeated key. `eager` computes scores and patterns as
tensors, so that they can be captured and edited. Knows nothing about methods, pages or schedulers.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from shared.lm.cache import KVCache

Tap = Callable[[str, int, Tensor], Tensor]
"""`tap(site, layer, x) -> x`: reads a named activation and returns what the decoder continues with."""


class AttentionFn(Protocol):
    """Interface of the decoder's attention: mixes values, and owns what it caches."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, offset: int) -> Tensor:
        """Rotated q [B,T,H,d], rotated k, plain v [B,T,G,d] of new tokens from position `offset` on → z [B,T,H,d]."""


def ignore_taps(_site: str, _layer: int, x: Tensor) -> Tensor:
    """Return the activation unchanged: the default tap."""
    return x


class DenseAttention:
    """Dense causal attention: every token sees itself and all before it, except left padding."""

    def __init__(
        self, cache: KVCache | None = None, pad: Tensor | None = None, windows: Sequence[int | None] | None = None
    ) -> None:
        """Attend over `cache` (None: over the call's own tokens), `pad` [B] tokens on the left left out.

        `windows` says per layer how many tokens a token sees, itself included; None sees all.
        """
        self.cache = cache
        self.pad = pad
        self._windows = windows

    def window(self, layer: int) -> int | None:
        """Return how many tokens a token of this layer sees; None is all."""
        return None if self._windows is None else self._windows[layer]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, offset: int) -> Tensor:
        """Mix values; see `AttentionFn`."""
        return sdpa(q, *self.remember(layer, k, v, offset), self.pad, self.window(layer))

    def remember(self, layer: int, k: Tensor, v: Tensor, offset: int) -> tuple[Tensor, Tensor]:
        """Store the new keys and values; return all of them [B,G,S,d]."""
        if self.cache is None:
            return k.transpose(1, 2), v.transpose(1, 2)
        return self.cache.write(layer, k, v, offset)


def causal_mask(queries: Tensor, keys: int, pad: Tensor | None, window: int | None = None) -> Tensor:
    """Return which of `keys` positions the queries at positions [T] see: [T,S], or [B,1,T,S] with left padding.

    With `window` only the last so many, the query's own included.
    """
    columns = torch.arange(keys, device=queries.device)
    mask = columns <= queries[:, None]
    if window is not None:
        mask = mask & (columns > queries[:, None] - window)
    return mask if pad is None else mask & (columns >= pad[:, None, None, None])


def sdpa(q: Tensor, keys: Tensor, values: Tensor, pad: Tensor | None = None, window: int | None = None) -> Tensor:
    """Compute fused attention of the last T positions: q [B,T,H,d], keys and values [B,G,S,d] → z [B,T,H,d]."""
    (B, T, H, d), (G, S) = q.shape, keys.shape[1:3]
    if window is not None and window >= S:
        window = None
    if T == 1 and pad is None:
        if window is not None:
            keys, values = keys[:, :, S - window :], values[:, :, S - window :]
        # One query: the heads of a group are the rows of one product with their shared keys.
        return functional.scaled_dot_product_attention(q.view(B, G, H // G, d), keys, values).view(B, 1, H, d)
    plain = T == S and pad is None and window is None
    mask = None if plain else causal_mask(torch.arange(S - T, S, device=q.device), S, pad, window)
    z = functional.scaled_dot_product_attention(
        q.transpose(1, 2), keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=G != H
    )
    return z.transpose(1, 2)


def scores(q: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    """Compute q·k / sqrt(d), −inf where `mask` ([T,S] or [B,1,T,S]) hides: q [B,T,H,d], keys [B,G,S,d] → [B,H,T,S]."""
    (B, T, H, d), (G, S) = q.shape, keys.shape[1:3]
    rows = q.transpose(1, 2).reshape(B, G, H // G * T, d)
    product: Tensor = (rows @ keys.transpose(-1, -2) * d**-0.5).view(B, H, T, S)
    return product.masked_fill(~mask, float("-inf"))


def patterns(scores: Tensor) -> Tensor:
    """Apply softmax per row in float32 or wider, in the dtype of the scores; a row that sees nothing is zero."""
    wide = scores if scores.dtype == torch.float64 else scores.float()
    return torch.nan_to_num(wide.softmax(-1), nan=0.0).to(scores.dtype)


def eager(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    pad: Tensor | None = None,
    *,
    layer: int = 0,
    tap: Tap = ignore_taps,
    window: int | None = None,
) -> Tensor:
    """Compute attention by plain products with `scores` and `pattern` tapped; shapes as `sdpa`."""
    (B, T, H, d), (G, S) = q.shape, keys.shape[1:3]
    mask = causal_mask(torch.arange(S - T, S, device=q.device), S, pad, window)
    pattern = tap("pattern", layer, patterns(tap("scores", layer, scores(q, keys, mask))))
    mixed = pattern.reshape(B, G, H // G * T, S) @ values
    return mixed.view(B, H, T, d).transpose(1, 2)
