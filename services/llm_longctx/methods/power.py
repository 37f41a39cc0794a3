"""PowerAttention (2025): blocks at power-of-two distances, next to a window and sinks; a static pattern."""

from functools import lru_cache
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from services.llm_longctx.kernels import BlockCsr
from services.llm_longctx.methods.core.attention_method import AttentionMethod, Reference
from services.llm_longctx.methods.core.hook_inputs import Chunk, DecodeView
from services.llm_longctx.methods.core.hook_results import Blocks, DecodePlan, Dense, PrefillPlan, Ranges
from services.llm_longctx.methods.core.oracle import blocks_to_tokens, masked_attention
from services.llm_longctx.methods.core.sparsity_claims import build_method_claim


class Power(AttentionMethod):
    """Each block reads its window, the sinks and the blocks at distances that are powers of two.

    In the paper the pattern is trained in: on a model that was not, expect much worse than dense. It saves compute and
    bandwidth, and no memory, because every block is needed again later.
    """

    name: ClassVar[str] = "power"
    phases = frozenset({"prefill", "decode"})
    actions = frozenset({"visibility"})
    granularity = "block"
    evidence = "static"
    sparsity = build_method_claim("power", granularity="block", mask="static", prefill="sparse", decode="sparse")

    block: int = Field(256, ge=1, le=65536, description="Tokens of a block.")
    window: int = Field(5, ge=1, description="Blocks nearest to the query's that are read, its own included.")
    sink: int = Field(1, ge=0, description="First blocks, always read.")
    dense_layers: tuple[int, ...] = Field((), description="Layers that stay dense.")

    contract_knobs: ClassVar = {"block": 4, "window": 1}

    def reference(self, q: Tensor, k: Tensor, v: Tensor, layer: int | None = None, **inputs: Any) -> Reference:
        H, N = q.shape[:2]
        rows = -(-N // self.block)
        kept = power_blocks(0, rows, rows if layer in self.dense_layers else self.window, self.sink)
        mask = blocks_to_tokens(kept, self.block, self.block, N)
        return Reference(masked_attention(q, k, v, mask), mask.expand(H, N, N), {"block_mask": kept})

    def prefill_plan(self, chunk: Chunk) -> PrefillPlan:
        if chunk.layer in self.dense_layers:
            return Dense()
        first, rows = chunk.offset // self.block, -(-chunk.k.shape[1] // self.block)
        return Blocks(_csr(len(chunk.kv_heads), first, rows, self.block, self.window, self.sink, chunk.q.device))

    def decode_plan(self, step: DecodeView) -> DecodePlan:
        return DecodePlan() if step.layer in self.dense_layers else DecodePlan(Ranges(self._spans(step.position)))

    def _spans(self, position: int) -> tuple[tuple[int, int], ...]:
        runs = _runs(position // self.block, self.window, self.sink)
        return tuple((a * self.block, min(b * self.block, position + 1)) for a, b in runs)


def power_blocks(first: int, rows: int, window: int, sink: int, device: torch.device | str = "cpu") -> Tensor:
    """Kept blocks of query blocks `first` … `rows`-1, bool [rows - first, rows]; a distance of 0 is a power of two."""
    column = torch.arange(rows, device=device)
    distance = torch.arange(first, rows, device=device)[:, None] - column
    near = (distance < window) | (distance & (distance - 1) == 0) | (column < sink)
    return (distance >= 0) & near


@lru_cache(maxsize=64)
def _csr(heads: int, first: int, rows: int, block: int, window: int, sink: int, device: torch.device) -> BlockCsr:
    kept = power_blocks(first, rows, window, sink, device)
    return BlockCsr.from_mask(kept.expand(heads, *kept.shape), block, first=first)


@lru_cache(maxsize=1024)
def _runs(row: int, window: int, sink: int) -> tuple[tuple[int, int], ...]:
    """Kept blocks of one row as runs [begin, end)."""
    kept = power_blocks(row, row + 1, window, sink)[0].nonzero()[:, 0].tolist()
    starts = [c for i, c in enumerate(kept) if i == 0 or kept[i - 1] != c - 1]
    ends = [c + 1 for i, c in enumerate(kept) if i + 1 == len(kept) or kept[i + 1] != c + 1]
    return tuple(zip(starts, ends, strict=True))
