"""Reads of a sequence's pages for taps: attention rows over what heads hold, and values by position.

Both look at a layer before its new entries are written: in a chunk they do not count as held yet, in a step their slots
are taken and stale. So the new ones always come from the forward itself.
"""

import torch
from torch import Tensor

from services.llm_longctx.engine.kv_manager import PagedState
from services.llm_longctx.kv_cache import Entries
from shared.lm.host_transfer import take_rows


class PagedValues:
    """Values of all tokens at some layers; a `ValueSource`. Zero where a head has evicted a token."""

    def __init__(self, state: PagedState, offset: int) -> None:
        self._state, self._offset = state, offset
        self._held: dict[int, Tensor] = {}

    def gather(self, layer: int, v: Tensor) -> None:
        """Take a layer's new values v [1,T,G,d], and those that its heads hold."""
        _, T, G, d = v.shape
        held = v.new_zeros(1, self._offset + T + 1, G, d)  # the last one is a virtual entry's, which has no position
        held[:, self._offset : -1] = v
        for g in range(G):
            entries = _before(self._state.cache.entries(layer, g), self._offset)
            held[0, :, g].index_copy_(0, entries.positions % held.shape[1], entries.v.to(v.dtype))
        self._held[layer] = held

    def values(self, layer: int, end: int) -> Tensor:
        """Values of the first `end` tokens [1,S,G,d]."""
        return self._held[layer][:, :end]


def attention_rows(
    state: PagedState, layer: int, q: Tensor, k: Tensor, offset: int, positions: list[int], heads: tuple[int, ...]
) -> Tensor:
    """Attention of some heads of new tokens over all that the heads hold.

    Args:
        state: The sequence, whose method says what is held.
        layer: Which layer.
        q: Rotated queries of the new tokens [1,T,H,d].
        k: Their rotated keys [1,T,G,d].
        offset: Position of the first of them.
        positions: Tokens whose rows are wanted, among the new ones.
        heads: Query heads.

    Returns:
        Rows [positions, heads, offset + T] float32; what a head does not hold, or does not see, is 0.
    """
    window = None if (windows := getattr(state.policy.config, "windows", None)) is None else windows[layer]
    (_, T, H, d), G = q.shape, k.shape[2]
    rows = torch.zeros(len(heads), len(positions), offset + T + 1, device=q.device)  # the last column is nobody's
    queries = take_rows(torch.arange(offset, offset + T, device=q.device), [at - offset for at in positions])[:, None]
    for g in sorted({head // (H // G) for head in heads}):
        held = _before(state.cache.entries(layer, g), offset)
        at = torch.cat((held.positions, torch.arange(offset, offset + T, device=q.device)))
        keys = torch.cat((held.k.float(), k[0, :, g].float()))
        visible = at <= queries
        if window is not None:
            visible &= at > queries - window
        for i, head in enumerate(heads):
            if head // (H // G) != g:
                continue
            scores = take_rows(q[0, :, head], [at - offset for at in positions]).float() @ keys.T * d**-0.5
            if held.log_weight is not None:
                scores[:, : len(held.positions)] += held.log_weight.float()
            pattern = scores.masked_fill(~visible, float("-inf")).softmax(-1)
            rows[i].index_copy_(1, at % rows.shape[2], pattern)
    return rows[:, :, :-1].transpose(0, 1)


def _before(entries: Entries, offset: int) -> Entries:
    """The entries of tokens before `offset`; a virtual one, at position -1, is among them."""
    return entries.take((entries.positions < offset).nonzero()[:, 0])
