"""Block-sparse prefill in plain torch: what lies behind the diagonal needs no mask, and the diagonal is one batch.

Per row of blocks the far keys are gathered and read by torch's fused kernel unmasked; the diagonal blocks of all rows
are one batched causal call; the two are parts of one softmax. Knows nothing about other back ends.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from services.llm_longctx.kernels.block_csr import BlockCsr
from services.llm_longctx.kernels.merge_lse import merge
from services.llm_longctx.kernels.sdpa_lse import sdpa_lse


def prefill(q: Tensor, k: Tensor, v: Tensor, blocks: BlockCsr) -> tuple[Tensor, Tensor]:
    """See `block_sparse_prefill`; the LSE is float32, or float64 for float64."""
    Hq, T, d = q.shape
    share = Hq // blocks.heads
    # [h, heads that share the blocks, T, d]: they are rows of one product, and keys are never repeated.
    packed = q.reshape(blocks.heads, share, T, d)
    out = torch.zeros_like(packed)
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    lse = torch.full(packed.shape[:-1], -torch.inf, dtype=wide, device=q.device)
    of = [h * share // (Hq // k.shape[0]) for h in range(blocks.heads)]
    diagonal: list[tuple[int, int]] = []
    for head, rows, far, near in _rows(blocks, T, k.shape[1]):
        keys, values, begin = k[of[head]], v[of[head]], rows.start + k.shape[1] - T
        parts = [_seen(packed[head, :, rows], keys, values, far, None)] if far else []
        if near == [(begin, begin + blocks.block)]:
            diagonal.append((head, rows.start))
        elif near:
            parts.append(_seen(packed[head, :, rows], keys, values, near, begin))
        if parts:
            out[head, :, rows], lse[head, :, rows] = merge(*parts)
    if diagonal:
        out, lse = merge((out, lse), _squares(packed, k, v, diagonal, of, blocks.block))
    return out.view(Hq, T, d), lse.view(Hq, T)


def _squares(
    packed: Tensor, k: Tensor, v: Tensor, at: list[tuple[int, int]], of: list[int], size: int
) -> tuple[Tensor, Tensor]:
    """The whole blocks on the diagonal, all in one causal call: a part of `packed`'s shape, empty elsewhere."""
    offset = k.shape[1] - packed.shape[2]
    q = torch.stack([packed[h, :, t : t + size] for h, t in at])
    keys = torch.stack([k[of[h], t + offset : t + offset + size] for h, t in at])[:, None].expand(q.shape)
    values = torch.stack([v[of[h], t + offset : t + offset + size] for h, t in at])[:, None].expand(q.shape)
    mixed, sums = sdpa_lse(q, keys, values, causal=True)
    out = torch.zeros_like(packed)
    lse = torch.full(packed.shape[:-1], -torch.inf, dtype=sums.dtype, device=q.device)
    for i, (h, t) in enumerate(at):
        out[h, :, t : t + size], lse[h, :, t : t + size] = mixed[i], sums[i]
    return out, lse


Runs = list[tuple[int, int]]
"""Ranges of tokens, [begin, end)."""


def _rows(blocks: BlockCsr, queries: int, keys: int) -> Iterator[tuple[int, slice, Runs, Runs]]:
    """(head, its queries, key ranges that all of them see, key ranges that touch the diagonal) of every row."""
    offset = keys - queries
    row_ptr, cols = blocks.row_ptr.tolist(), blocks.cols.tolist()
    for head, ends in enumerate(row_ptr):
        for row in range(blocks.rows):
            begin = max((blocks.first + row) * blocks.block, offset)
            end = min((blocks.first + row + 1) * blocks.block, keys)
            if begin >= end:
                continue
            far, near = _split(cols[ends[row] : ends[row + 1]], blocks.key_block, begin, end)
            yield head, slice(begin - offset, end - offset), far, near


def _split(columns: list[int], size: int, begin: int, end: int) -> tuple[Runs, Runs]:
    """Ranges of the kept blocks that lie before query `begin`, and those that some query before `end` can't see."""
    far: Runs = []
    near: Runs = []
    for column in columns:
        first, last = column * size, min((column + 1) * size, end)
        if first < last:
            _append(far if last <= begin + 1 else near, first, last)
    return far, near


def _append(runs: Runs, first: int, last: int) -> None:
    if runs and runs[-1][1] == first:
        runs[-1] = (runs[-1][0], last)
    else:
        runs.append((first, last))


def _seen(q: Tensor, k: Tensor, v: Tensor, runs: Runs, begin: int | None) -> tuple[Tensor, Tensor]:
    """Queries [g,t,d] over key ranges; `begin`, the first query's position, asks for causality inside them."""
    keys, values = _gather(k, runs), _gather(v, runs)
    if begin is None:
        out, lse = sdpa_lse(q.reshape(1, 1, -1, q.shape[-1]), keys[None, None], values[None, None])
        return out.view(q.shape), lse.view(q.shape[:-1])
    shared = (1, q.shape[0], *keys.shape)
    positions = torch.cat([torch.arange(*run, device=q.device) for run in runs])
    hidden = positions > torch.arange(begin, begin + q.shape[1], device=q.device)[:, None]
    bias = torch.zeros(hidden.shape, dtype=q.dtype, device=q.device).masked_fill_(hidden, -torch.inf)
    out, lse = sdpa_lse(q[None], keys.expand(shared), values.expand(shared), bias=bias)
    return out[0], lse[0]


def _gather(x: Tensor, runs: Runs) -> Tensor:
    return x[slice(*runs[0])] if len(runs) == 1 else torch.cat([x[slice(*run)] for run in runs])
