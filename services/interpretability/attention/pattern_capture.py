"""Capture of attention pattern rows, a block of queries at a time: no T×T map is held, also for long texts.

Values are mixed by the fused kernel, so logits are those of the plain forward. Knows the decoder's attention seam;
knows no experiment.
"""

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from shared.lm.attention import AttentionFn, DenseAttention, causal_mask, patterns, scores, sdpa
from shared.lm.cache import KVCache
from shared.lm.decoder import Decoder

AttentionRowCallback = Callable[[int, int, Tensor], None]
"""`visit(layer, start, rows)`: rows [B,H,t,S] of the queries from position `start` on; S ends with the last of them."""

ProjectionEdit = Callable[[int, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""`edit(layer, q, k, v) -> q, k, v`: edits queries, keys and values [N,T,heads,d] before they are rotated."""


ROWS_AT_ONCE = 128
"""Positions whose pattern rows or logits are held at a time: those of a long text take gigabytes."""


class RowCapturingAttention(DenseAttention):
    """The decoder's `attend`: passes pattern rows to a visitor, and mixes values as always."""

    def __init__(
        self,
        visit: AttentionRowCallback,
        *,
        layers: Collection[int] | None = None,
        since: int = 0,
        cache: KVCache | None = None,
        windows: Sequence[int | None] | None = None,
    ) -> None:
        """Capture rows of `layers` (None: all), of queries from position `since` on.

        Continues from `cache` where there is one; `windows` says per layer how many tokens a token sees (None: all).
        """
        super().__init__(cache, windows=windows)
        self._visit, self._layers, self._since = visit, layers, since

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, offset: int) -> Tensor:
        keys, values = self.remember(layer, k, v, offset)
        window = self.window(layer)
        if self._layers is None or layer in self._layers:
            for start in range(max(self._since - offset, 0), q.shape[1], ROWS_AT_ONCE):
                end = min(start + ROWS_AT_ONCE, q.shape[1])
                last = offset + end
                mask = causal_mask(torch.arange(offset + start, last, device=q.device), last, None, window)
                self._visit(layer, offset + start, patterns(scores(q[:, start:end], keys[:, :, :last], mask)))
        return sdpa(q, keys, values, window=window)


class ColumnMaskedAttention(DenseAttention):
    """The decoder's `attend` with some columns hidden from some heads; the rows are renormalised without them."""

    def __init__(
        self, columns: Collection[int], heads: Collection[tuple[int, int]], windows: Sequence[int | None] | None = None
    ) -> None:
        """Hide positions `columns` from `heads` (layer, head). A query that would see nothing keeps its own column."""
        super().__init__(windows=windows)
        self._columns, self._heads = sorted(columns), sorted(heads)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, offset: int) -> Tensor:
        keys, values = self.remember(layer, k, v, offset)
        window = self.window(layer)
        z = sdpa(q, keys, values, window=window)
        heads = [head for l, head in self._heads if l == layer]
        if not heads:
            return z
        mask = causal_mask(torch.arange(q.shape[1], device=q.device), keys.shape[2], None, window).clone()
        mask[:, self._columns] = False
        mask |= torch.eye(*mask.shape, dtype=torch.bool, device=mask.device) & ~mask.any(1, keepdim=True)
        group = q.shape[2] // keys.shape[1]
        kv_heads = [head // group for head in heads]
        z = z.clone()
        for start in range(0, q.shape[1], ROWS_AT_ONCE):
            block = slice(start, start + ROWS_AT_ONCE)
            rows = patterns(scores(q[:, block, heads], keys[:, kv_heads], mask[block]))
            z[:, block, heads] = (rows @ values[:, kv_heads]).transpose(1, 2)
        return z


@torch.no_grad()
def visit_patterns(
    model: Decoder, ids: Tensor, visit: AttentionRowCallback, *, layers: Collection[int] | None = None
) -> Tensor:
    """Run `ids` [B,T] once and pass all pattern rows to `visit`; return the logits of the last position [B,1,V]."""
    attend = RowCapturingAttention(visit, layers=layers, windows=model.config.windows)
    logits: Tensor = model(ids, attend=attend, keep=1)
    return logits


def run_blocks(
    model: Decoder, layer: int, x: Tensor, attend: AttentionFn, edit: ProjectionEdit | None = None
) -> Tensor:
    """Run a stream x [N,T,D] from block `layer` on; return the last logits [N,V]."""
    turns = model.rotations(torch.arange(x.shape[1], device=x.device), x.dtype)
    for l in range(layer, model.config.layers):
        block = model.blocks[l]
        q, k, v = block.project(x)
        if edit is not None:
            q, k, v = edit(l, q, k, v)
        q, k = block.apply_positions(q, k, turns[l])
        x = x + block.output(attend(l, q, k, v, 0))
        x = x + block.feed(x)
    return model.read_logits(x[:, -1])
