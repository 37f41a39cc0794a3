"""Ragged decode on a GPU, or in Triton's interpreter: a program per span of a problem, its query rows together.

Where entries lie is told by address: one table row per problem, and for entries in pages the numbers of the pages.
Imported only where Triton is installed. Knows nothing about other back ends.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from services.llm_longctx.kernels.decode.pages import PageTable
from services.llm_longctx.kernels.dispatch import is_interpreted

__all__ = ["decode", "decode_pages"]

SPAN = 1024
"""Entries of a program; longer problems are cut, and their parts merged."""

_TILE = 64
"""Entries that a program multiplies at a time."""

_WORDS = 7
"""Of a problem: addresses of keys, values and log-weights (0: none), strides of a row, entries, first page."""


def decode(
    q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], log_weights: Sequence[Tensor | None], span: int = SPAN
) -> tuple[Tensor, Tensor]:
    """See `decode`; the LSE is float32."""
    keys, values = ([x if x.stride(1) == 1 else x.contiguous() for x in held] for held in (keys, values))
    weights = [_wide(one) for one in log_weights]
    table = [
        [k.data_ptr(), v.data_ptr(), _address(w), k.stride(0), v.stride(0), len(k), 0]
        for k, v, w in zip(keys, values, weights, strict=True)
    ]
    return _run(q, table, max((len(k) for k in keys), default=0), None, 0, span)


def decode_pages(
    q: Tensor, pool: Tensor, pages: PageTable, log_weights: Sequence[Tensor | None], span: int = SPAN
) -> tuple[Tensor, Tensor]:
    """See `decode_pages`: the pages are read where they lie."""
    pool = pool if pool.stride(3) == 1 else pool.contiguous()
    weights = [_wide(one) for one in log_weights]
    at = pool.data_ptr(), pool.data_ptr() + pool.stride(1) * pool.element_size()
    lengths = pages.lengths.tolist()
    table = [
        [*at, _address(w), pool.stride(2), pool.stride(2), n, begin]
        for w, n, begin in zip(weights, lengths, pages.row_ptr[:-1].tolist(), strict=True)
    ]
    return _run(q, table, max(lengths, default=0), (pages.pages.to(q.device), pool.stride(0)), pool.shape[2], span)


def _run(
    q: Tensor, table: list[list[int]], longest: int, paged: tuple[Tensor, int] | None, page: int, span: int
) -> tuple[Tensor, Tensor]:
    q = q.contiguous()
    R, G, d = q.shape
    parts = max(triton.cdiv(longest, span), 1)
    out = torch.empty(R, parts, G, d, dtype=torch.float32, device=q.device)
    lse = torch.empty(R, parts, G, dtype=torch.float32, device=q.device)
    words = torch.tensor(table, dtype=torch.int64, device=q.device).reshape(R, _WORDS)
    pages, page_stride = paged or (words, 0)
    if R:
        _decode[R, parts](
            q,
            words,
            pages,
            out,
            lse,
            page_stride,
            d**-0.5,
            SPAN=span,
            PAGE=page,
            G=G,
            D=d,
            ROWS=max(triton.next_power_of_2(G), 16),
            WIDE=max(triton.next_power_of_2(d), 16),
            KEYS=_TILE,
            WORDS=_WORDS,
            WIDEN=is_interpreted(),  # the interpreter multiplies bfloat16 as if it were whole numbers
        )
    # Parts that saw nothing have lse −inf and out 0; a row whose parts all are so stays so.
    sums = lse.logsumexp(1)
    share = torch.exp(lse - torch.where(sums.isneginf(), torch.zeros_like(sums), sums)[:, None])
    return (out * share[..., None]).sum(1).to(q.dtype), sums


def _wide(weights: Tensor | None) -> Tensor | None:
    """Log-weights as the kernel reads them; what had to be copied lives as long as the list it is put in."""
    return None if weights is None else weights.to(torch.float32).contiguous()


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


@triton.jit  # type: ignore[untyped-decorator]
def _decode(  # pointers and numbers alike are tensors to Triton
    q: tl.tensor,
    words: tl.tensor,
    pages: tl.tensor,
    out: tl.tensor,
    lse: tl.tensor,
    page_stride: tl.tensor,
    scale: tl.tensor,
    SPAN: tl.constexpr,
    PAGE: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
    KEYS: tl.constexpr,
    WORDS: tl.constexpr,
    WIDEN: tl.constexpr,
) -> None:
    problem, part = tl.program_id(0), tl.program_id(1)
    word = words + problem * WORDS
    dtype = tl.pointer_type(q.dtype.element_ty)
    k, v = tl.load(word).to(dtype), tl.load(word + 1).to(dtype)
    weights_at = tl.load(word + 2)
    k_row, v_row, n, table = tl.load(word + 3), tl.load(word + 4), tl.load(word + 5), tl.load(word + 6)
    row, d = tl.arange(0, ROWS), tl.arange(0, WIDE)
    inside = (row < G)[:, None] & (d < D)[None, :]
    rows = tl.load(q + (problem * G + row)[:, None] * D + d[None, :], inside, 0.0)
    if WIDEN:
        rows = rows.to(tl.float32)
    most = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, WIDE), tl.float32)
    for begin in range(part * SPAN, tl.minimum((part + 1) * SPAN, n), KEYS):
        entry = begin + tl.arange(0, KEYS)
        there = (entry < n) & (entry < (part + 1) * SPAN)
        if PAGE > 0:
            page = tl.load(pages + table + entry // PAGE, there, 0).to(tl.int64)
            k_at, v_at = page * page_stride + entry % PAGE * k_row, page * page_stride + entry % PAGE * v_row
        else:
            k_at, v_at = entry * k_row, entry * v_row
        keys = tl.load(k + k_at[None, :] + d[:, None], there[None, :] & (d < D)[:, None], 0.0)
        if WIDEN:
            keys = keys.to(tl.float32)
        scores = tl.dot(rows, keys, input_precision="ieee") * scale
        if weights_at != 0:
            scores += tl.load(weights_at.to(tl.pointer_type(tl.float32)) + entry, there, 0.0)[None, :]
        scores = tl.where(there[None, :], scores, float("-inf"))
        now = tl.maximum(most, tl.max(scores, 1))
        shift = tl.where(now == float("-inf"), 0.0, now)
        weights = tl.exp(scores - shift[:, None])
        by = tl.exp(most - shift)
        values = tl.load(v + v_at[:, None] + d[None, :], there[:, None] & (d < D)[None, :], 0.0)
        if WIDEN:
            values = values.to(tl.float32)
        mixed = mixed * by[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        total = total * by + tl.sum(weights, 1)
        most = now
    some = total > 0
    mixed = mixed / tl.where(some, total, 1.0)[:, None]
    place = (problem * tl.num_programs(1) + part) * G + row
    tl.store(out + place[:, None] * D + d[None, :], mixed, inside)
    tl.store(lse + place, tl.where(some, most + tl.log(tl.where(some, total, 1.0)), float("-inf")), row < G)
