"""How the queries of a chunk read, plan by plan: pure functions from tensors to (out, lse) parts.

Axes: H query heads, G key/value heads, T queries at positions offset …, S keys. Knows nothing about memory.
"""

from dataclasses import replace
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor

from services.llm_longctx.kernels import BlockCsr, block_sparse_prefill, merge, window_prefill
from services.llm_longctx.kernels.dispatch import Backend, choose
from services.llm_longctx.kernels.sdpa_lse import has_flash, sdpa_lse
from services.llm_longctx.methods.core.hook_results import Blocks, Dense, PrefillPlan, TokenLists, WindowSink
from shared.lm.host_transfer import to_device

LEAST = 16
"""Queries below which a product is too small for blocks to pay."""

BLOCK = 64
"""Tokens of a block where all blocks are kept; chunks end on multiples of it."""

Part = tuple[Tensor, Tensor]
"""out [H,T,d] and natural-log lse [H,T]."""


def over_history(q: Tensor, k: Tensor, v: Tensor, plan: PrefillPlan, backend: str) -> Part:
    """The last T of S positions read their whole history: q [H,T,d], k and v [G,S,d] from position 0 on."""
    match plan:
        case Dense() if q.shape[1] >= LEAST and (kernel := _dense_kernel(q, backend)) is not None:
            blocks = _causal(k.shape[0], k.shape[1], q.shape[1], q.device)
            return block_sparse_prefill(q, k, v, blocks, backend=kernel, return_lse=True)
        case Dense():
            return _dense(q, k, v)
        case Blocks(csr=csr):
            out, lse = block_sparse_prefill(q, k, v, csr, backend=backend, return_lse=True)
            return out.to(q.dtype), lse
        case WindowSink(sink=sink, window=window):
            return window_prefill(q, k, v, sink, window, backend=backend)
        case TokenLists():
            kernel = choose("block_sparse_prefill", backend, q.dtype, q.device.type)
            if plan.block is not None and kernel == "cpu_ext":  # with all blocks kept it beats torch's own
                return _listed_together(q, k, v, plan, backend)
            return _listed(q, k, v, plan)


def over_held(q: Tensor, held: Part, weight: Tensor, k: Tensor, v: Tensor) -> Part:
    """Queries of one group read all that their head still holds, by weight, then their own chunk causally.

    Args:
        q: [R,T,d], the group's query heads.
        held: Keys and values [n,d] of earlier positions.
        weight: Log-weights of the held entries [n].
        k: The chunk's own keys [T,d].
        v: Its values.
    """
    own = _dense(q, k[None], v[None])
    return own if not len(held[0]) else merge(_far(q, held[0][None], held[1][None], weight), own)


def window_mask(positions: Tensor, offset: int, queries: int, sink: int, window: int) -> Tensor:
    """Keys at `positions` [n] that queries offset … may see with a sink and a window: [T,n]."""
    at = torch.arange(offset, offset + queries, device=positions.device)[:, None]
    return (positions <= at) & ((positions < sink) | (at - positions < window))


def _dense_kernel(q: Tensor, backend: str) -> Backend | None:
    """The kernel of blocks that serves dense attention here, too: it keeps no scores. FlashAttention is faster."""
    kernel = choose("block_sparse_prefill", backend, q.dtype, q.device.type)
    return kernel if kernel == "cpu_ext" or (kernel == "triton" and not has_flash(q)) else None


@lru_cache(maxsize=64)
def _causal(heads: int, keys: int, queries: int, device: torch.device) -> BlockCsr:
    """All causal blocks of the last queries, on a device: layers of a chunk share them."""
    first, end = (keys - queries) // BLOCK, -(-keys // BLOCK)
    mask = torch.ones(heads, end - first, end, dtype=torch.bool, device="cpu")
    blocks = BlockCsr.from_mask(mask, BLOCK, first=first)
    return replace(blocks, row_ptr=to_device(blocks.row_ptr, device), cols=to_device(blocks.cols, device))


def _dense(q: Tensor, k: Tensor, v: Tensor) -> Part:
    """Causal over everything: the past needs no mask, and the chunk itself is one causal call."""
    T, S = q.shape[1], k.shape[1]
    out, lse = sdpa_lse(q[None], _shared(q, k[:, S - T :]), _shared(q, v[:, S - T :]), causal=True)
    near = (out[0], lse[0])
    return near if S == T else merge(_far(q, k[:, : S - T], v[:, : S - T], None), near)


def _far(q: Tensor, k: Tensor, v: Tensor, weight: Tensor | None) -> Part:
    """Every query sees every key: the heads of a group are rows of one product."""
    (H, T, d), G = q.shape, k.shape[0]
    bias = None if weight is None else weight[None]
    out, lse = sdpa_lse(q.reshape(1, G, H // G * T, d), k[None], v[None], bias=bias)
    return out.reshape(H, T, d), lse.reshape(H, T)


def under_mask(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, bias: Tensor | None = None) -> Part:
    """Queries [H,T,d] over keys [G,n,d] that a mask [T,n] lets them see, with log-weights [n] or None."""
    seen = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(~mask, -torch.inf)
    out, lse = sdpa_lse(q[None], _shared(q, k), _shared(q, v), bias=seen if bias is None else seen + bias.to(q.dtype))
    return out[0], lse[0]


def _listed(q: Tensor, k: Tensor, v: Tensor, plan: TokenLists) -> Part:
    offset, parts = k.shape[1] - q.shape[1], []
    for row in plan.rows:
        rows = q[:, row.begin - offset : row.end - offset]
        tokens = torch.arange(row.end, device=q.device) if row.tokens is None else row.tokens
        mask = tokens <= torch.arange(row.begin, row.end, device=q.device)[:, None]
        parts.append(under_mask(rows, k[:, tokens], v[:, tokens], mask))
    return torch.cat([out for out, _ in parts], 1), torch.cat([lse for _, lse in parts], 1)


def _listed_together(q: Tensor, k: Tensor, v: Tensor, plan: TokenLists, backend: str) -> Part:
    """All lists in one call of the block kernel, whose blocks of keys are single tokens; then the dense rest."""
    G, T, S = k.shape[0], q.shape[1], k.shape[1]
    offset, lists = S - T, [row.tokens for row in plan.rows if row.tokens is not None]
    end = max((row.end for row in plan.rows if row.tokens is not None), default=offset)
    parts = []
    if lists:
        ends = torch.tensor([0, *accumulate(len(tokens) for tokens in lists)], device="cpu")  # a C++ kernel reads it
        row_ptr = (ends + torch.arange(G, device="cpu")[:, None] * ends[-1]).int()
        block = plan.block or 1
        blocks = BlockCsr(row_ptr, torch.cat(lists * G).int(), block, 1, offset // block)
        near = q[:, : end - offset], k[:, :end], v[:, :end]
        parts.append(block_sparse_prefill(*near, blocks, backend="cpu_ext", return_lse=True))
    if end < S:
        parts.append(over_history(q[:, end - offset :], k, v, Dense(), backend))
    return torch.cat([out for out, _ in parts], 1), torch.cat([lse for _, lse in parts], 1)


def _shared(q: Tensor, x: Tensor) -> Tensor:
    """Keys or values [G,n,d] as each query head sees them [1,H,n,d], without copying."""
    return (
        x[None]
        if x.shape[0] == q.shape[0]
        else x[:, None].expand(-1, q.shape[0] // x.shape[0], -1, -1).flatten(0, 1)[None]
    )
