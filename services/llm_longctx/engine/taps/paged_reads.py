"""Reads of a sequence's pages for taps: attention rows over what heads hold, and values by position.

Both look at a layer before its new entries are written: in a chunk they do not count as held yet, in a step their slots
are taken and stale. So the new ones always come from the forward itself.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from services.llm_longctx.engine.paged_state import PagedState
from services.llm_longctx.kv_cache import Entries

__all__ = ["PagedValues", "attention_rows"]


class PagedValues:
    """Values of all tokens at some layers; a `ValueSource`. Zero where a head has evicted a token."""

    def __init__(self, state: PagedState, offset: int) -> None:
        self._state, self._offset = state, offset
        self._held: dict[int, Tensor] = {}

    def gather(self, layer: int, v: Tensor) -> None:
        """Take a layer's new values v [1,T,G,d], and those that its heads hold."""
        _, T, G, d = v.shape
        held = v.new_zeros(1, self._offset + T, G, d)
        held[:, self._offset :] = v
        for g in range(G):
            entries = _before(self._state.cache.entries(layer, g), self._offset)
            real = entries.positions >= 0
            held[0, entries.positions[real], g] = entries.v[real].to(v.dtype)
        self._held[layer] = held

    def values(self, layer: int, end: int) -> Tensor:
        """Values of the first `end` tokens [1,S,G,d]."""
        return self._held[layer][:, :end]


def attention_rows(
    state: PagedState, layer: int, q: Tensor, k: Tensor, offset: int, positions: list[int], heads: tuple[int, ...]
) -> list[np.ndarray]:
    """Attention of some heads of new tokens over all that the heads hold, row by row.

    Args:
        state: The sequence, whose method says what is held.
        layer: Which layer.
        q: Rotated queries of the new tokens [1,T,H,d].
        k: Their rotated keys [1,T,G,d].
        offset: Position of the first of them.
        positions: Tokens whose rows are wanted, among the new ones.
        heads: Query heads.

    Returns:
        Per position its rows [heads, position + 1]; what a head does not hold, or sees outside of its window, is 0.
    """
    window = None if (windows := getattr(state.policy.config, "windows", None)) is None else windows[layer]
    H, G, d = q.shape[2], k.shape[2], q.shape[3]
    rows = [np.zeros((len(heads), position + 1), np.float32) for position in positions]
    queries = torch.tensor(positions)
    for g in sorted({head // (H // G) for head in heads}):
        held = _before(state.cache.entries(layer, g), offset)
        at = torch.cat((held.positions, torch.arange(offset, offset + k.shape[1])))
        keys = torch.cat((held.k.float(), k[0, :, g].float()))
        visible = at <= queries[:, None]
        if window is not None:
            visible &= at > queries[:, None] - window
        for i, head in enumerate(heads):
            if head // (H // G) != g:
                continue
            scores = q[0, queries - offset, head].float() @ keys.T * d**-0.5
            if held.log_weight is not None:
                scores[:, : len(held.positions)] += held.log_weight.float()
            pattern = scores.masked_fill(~visible, float("-inf")).softmax(-1)
            for row, seen, weights in zip(rows, visible, pattern, strict=True):
                real = seen & (at >= 0)
                row[i, at[real].numpy()] = weights[real].numpy()
    return rows


def _before(entries: Entries, offset: int) -> Entries:
    """The entries of tokens before `offset`; a virtual one, at position -1, is among them."""
    return entries.take((entries.positions < offset).nonzero()[:, 0])
