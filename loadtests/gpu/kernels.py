"""Attention kernels on a card, against SDPA, FlexAttention and FlashAttention, over long contexts in bfloat16."""

import functools
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from loadtests.gpu.cost_model import Work
from loadtests.gpu.timing import Row, guard, row_of
from services.llm_longctx.kernels import BlockCsr, DeviceRuns, block_sparse_prefill, decode_device_runs
from services.llm_longctx.kernels.device.cards import GpuCard

DENSITY = 0.15
"""Share of the causal blocks that a sparse prefill keeps."""

_BLOCK = 128


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of attention: those of Llama-3-8B, unless a test wants smaller ones."""

    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    batch: int = 8
    contexts: tuple[int, ...] = (32_768, 65_536, 131_072)
    dtype: torch.dtype = torch.bfloat16


def time_kernels(
    device: torch.device, card: GpuCard | None, shape: Shape = Shape(), backend: str = "auto"
) -> Iterator[Row]:
    """Yield decode and prefill over each context."""
    for context in shape.contexts:
        for name, time_one in (("decode", _time_decode), ("prefill", _time_prefill)):
            rows = time_one(device, card, shape, context, backend)
            yield from guard("kernels", f"{name}, {context:,}", "all", rows)


def _time_decode(device: torch.device, card: GpuCard | None, shape: Shape, context: int, backend: str) -> Iterator[Row]:
    B, H, G, d = shape.batch, shape.heads, shape.kv_heads, shape.head_dim
    q = torch.randn(B, H, 1, d, dtype=shape.dtype, device=device)
    k, v = (torch.randn(B, G, context, d, dtype=shape.dtype, device=device) for _ in range(2))
    stores = k.view(-1, d), v.view(-1, d), torch.zeros(B * G * context, device=device)
    start = torch.arange(B * G, device=device) * context
    runs = DeviceRuns(
        start, torch.full_like(start, context), torch.zeros_like(start).bool(), context, any_weighted=False
    )
    rows, name = q.view(B * G, H // G, d), f"decode, {B} × {context:,}"
    work = Work("attention", 4.0 * B * G * context * d, operations=B * G * context * 4.0 * d * 16, launches=1)
    ours = functools.partial(decode_device_runs, rows, stores, runs, backend=backend)
    yield row_of("kernels", name, "ours", ours, device, computed_ms=_computed(work, card))
    yield from _rivals(name, q, k, v, device, causal=False)


def _time_prefill(
    device: torch.device, card: GpuCard | None, shape: Shape, context: int, backend: str
) -> Iterator[Row]:
    H, G, d = shape.heads, shape.kv_heads, shape.head_dim
    q = torch.randn(1, H, context, d, dtype=shape.dtype, device=device)
    k, v = (torch.randn(1, G, context, d, dtype=shape.dtype, device=device) for _ in range(2))
    dense = BlockCsr.dense(G, context, _BLOCK)
    blocks = -(-context // _BLOCK)
    mask = torch.rand(G, blocks, blocks, device=device) < DENSITY
    mask |= torch.eye(blocks, dtype=torch.bool, device=device)
    sparse = BlockCsr.from_mask(mask, _BLOCK)
    dense = BlockCsr(dense.row_ptr.to(device), dense.cols.to(device), _BLOCK, _BLOCK)
    pairs = context * context / 2
    for name, kept, share in (
        (f"prefill, {context:,}", dense, 1.0),
        (f"prefill, {context:,}, sparse", sparse, DENSITY),
    ):
        work = Work("attention", 0.0, operations=4.0 * pairs * share * H * d, launches=1)
        ours = functools.partial(block_sparse_prefill, q[0], k[0], v[0], kept, backend=backend)
        yield row_of("kernels", name, "ours", ours, device, computed_ms=_computed(work, card), rounds=3)
    yield from _rivals(f"prefill, {context:,}", q, k, v, device, causal=True)
    yield row_of(
        "kernels", f"prefill, {context:,}, sparse", "FlexAttention", _flex_sparse(q, k, v, mask), device, rounds=3
    )


def _rivals(name: str, q: Tensor, k: Tensor, v: Tensor, device: torch.device, *, causal: bool) -> Iterator[Row]:
    rounds = 3 if causal else 10
    sdpa = functools.partial(functional.scaled_dot_product_attention, q, k, v, is_causal=causal, enable_gqa=True)
    yield row_of("kernels", name, "SDPA", sdpa, device, rounds=rounds)
    yield row_of("kernels", name, "FlashAttention", _flash(q, k, v, causal=causal), device, rounds=rounds)


def _flash(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Callable[[], Tensor]:
    def run() -> Tensor:
        attend = importlib.import_module("flash_attn").flash_attn_func
        found: Tensor = attend(*(x.transpose(1, 2) for x in (q, k, v)), causal=causal)
        return found

    return run


def _flex_sparse(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Callable[[], Tensor]:
    """FlexAttention over the same blocks, compiled with its first call."""
    per_group, n = q.shape[1] // k.shape[1], q.shape[2]

    @functools.cache
    def prepare() -> Callable[[], Tensor]:
        flex, compiled = importlib.import_module("torch.nn.attention.flex_attention"), cast("Any", torch.compile)

        def kept(_: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return (j <= i) & mask[h // per_group, i // _BLOCK, j // _BLOCK]

        make = compiled(flex.create_block_mask)
        chosen = make(kept, None, q.shape[1], n, n, device=q.device, BLOCK_SIZE=_BLOCK)
        attend = compiled(flex.flex_attention)
        return lambda: attend(q, k, v, block_mask=chosen, enable_gqa=True)

    def run() -> Tensor:
        found: Tensor = prepare()()
        return found

    return run


def _computed(work: Work, card: GpuCard | None) -> float | None:
    return None if card is None else 1e3 * work.seconds(card)
