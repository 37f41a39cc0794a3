"""FlexPrefill (2025): each head picks its key blocks by what its last queries attend to."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from services.llm_longctx.kernels import BlockCsr, last_query_scores
from services.llm_longctx.kernels.block_csr import causal_blocks
from services.llm_longctx.methods.core.attention_method import AttentionMethod, Reference
from services.llm_longctx.methods.core.block_means import block_means
from services.llm_longctx.methods.core.hook_inputs import Chunk
from services.llm_longctx.methods.core.hook_results import Blocks, Dense, PrefillPlan
from services.llm_longctx.methods.core.oracle import blocks_to_tokens, masked_attention
from services.llm_longctx.methods.core.sparsity_claims import build_method_claim

_RELEASED = 128
"""Tokens per block in the release's counts, whatever the block is."""


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Kept blocks [H,rows,columns], each head's divergence [H] (NaN where an estimate is zero), and who is aware."""

    kept: Tensor
    jsd: Tensor
    query_aware: Tensor


class FlexPrefill(AttentionMethod):
    """Prompts are read block-sparsely, by columns and diagonals that cover `gamma` of a probe's attention.

    Heads whose block means predict the probe (divergence below `tau`) add blocks by estimated mass. Decoding is dense,
    and nothing is freed. Selections depend on the chunks: a single chunk equals the release.
    """

    name: ClassVar[str] = "flexprefill"
    phases = frozenset({"prefill"})
    actions = frozenset({"visibility"})
    granularity = "block"
    evidence = "last query block"
    chunk_invariant = False
    sparsity = build_method_claim("flexprefill", granularity="block", mask="dynamic", prefill="sparse")

    block: int = Field(128, ge=1, le=4096, description="Tokens of a block, and of the probe.")
    gamma: float = Field(0.9, gt=0, le=1, description="Attention mass that the selection covers.")
    tau: float = Field(0.1, ge=0, description="Divergence below which block means are trusted; 0: never.")
    min_budget: int = Field(1024, ge=1, description="Least tokens that columns and diagonals each keep.")
    max_budget: int | None = Field(None, ge=1, description="Most tokens that they each keep.")
    variant: Literal["released", "described"] = Field(
        "released", description="Whether token counts become blocks by 128 always (released) or by the block's size."
    )
    group_union: bool = Field(False, description="Query heads of a group share the union of their blocks.")

    contract_knobs: ClassVar = (
        {"block": 8, "min_budget": 8, "gamma": 0.6},
        {"block": 4, "min_budget": 4, "gamma": 0.7, "tau": 0.9},
        {"block": 4, "min_budget": 4, "gamma": 0.8, "tau": 0, "variant": "described"},
    )

    def reference(self, q: Tensor, k: Tensor, v: Tensor, **inputs: Any) -> Reference:
        N = q.shape[1]
        chosen = self.select(q.double(), k.double())
        mask = blocks_to_tokens(chosen.kept, self.block, self.block, N)
        extras = {"block_mask": chosen.kept, "jsd": chosen.jsd, "query_aware": chosen.query_aware}
        return Reference(masked_attention(q, k, v, mask), mask, extras)

    def prefill_plan(self, chunk: Chunk) -> PrefillPlan:
        if chunk.evicting or self._short(chunk.k.shape[1]) or chunk.offset % self.block:
            return Dense()
        kept = self.select(chunk.q, chunk.k).kept
        if self.group_union:
            kept = kept.view(len(chunk.kv_heads), -1, *kept.shape[1:]).any(1)
        return Blocks(BlockCsr.from_mask(kept, self.block, first=chunk.offset // self.block))

    def select(self, q: Tensor, k: Tensor) -> Selection:
        """Kept blocks of the last T of N positions: q [H,T,d], k [G,N,d]; T < N continues a prompt.

        Softmaxes are float32 or wider. Rows and columns of blocks are counted from position 0.
        """
        wide = torch.promote_types(q.dtype, torch.float32)
        (H, T), N, B = q.shape[:2], k.shape[1], self.block
        rows, columns, first = -(-N // B) - (N - T) // B, -(-N // B), (N - T) // B
        if self._short(N):
            kept = causal_blocks(rows, columns, B, B, first, q.device).expand(H, rows, columns)
            return Selection(kept, q.new_full((H,), torch.nan, dtype=wide), q.new_zeros(H, dtype=torch.bool))
        last = q[:, -min(B, T) :]
        vertical, slash = (sums / last.shape[1] for sums in last_query_scores(last, k))
        by_column, by_distance = _pooled(vertical, B), _pooled_far(slash, B)
        low, high = self._bounds(columns)
        counts = [self._blocks(_coverage(x, self.gamma)).clamp(min=low).clamp(max=high) for x in (vertical, slash)]
        keys = block_means(k, B).to(wide).repeat_interleave(H // k.shape[0], 0)
        estimate = ((last.to(wide) * q.shape[-1] ** -0.5).mean(1, keepdim=True) @ keys.mT)[:, 0].softmax(-1)
        jsd = _divergence(estimate, by_column)
        aware = jsd < self.tau
        columns_kept, distances = (
            _largest(mass, torch.where(aware, min(low, high), count))
            for mass, count in zip((by_column, by_distance), counts, strict=True)
        )
        at = torch.arange(first, first + rows, device=q.device)[:, None] - torch.arange(columns, device=q.device)
        kept = (columns_kept[:, None] | distances[:, at.clamp(min=0)]) & (at >= 0)
        if aware.any():
            kept[aware] |= self._by_mass(q[aware].to(wide), keys[aware], at >= 0)
        return Selection(kept, jsd, aware)

    def _by_mass(self, q: Tensor, keys: Tensor, causal: Tensor) -> Tensor:
        """Step 8: the blocks of largest estimated attention, with one budget over the whole map."""
        logits = block_means(q, self.block) * q.shape[-1] ** -0.5 @ keys.mT
        mass = logits.masked_fill(~causal, float("-inf")).softmax(-1)
        ordered, index = mass.flatten(1).sort(dim=-1, descending=True, stable=True)
        within = ordered.cumsum(-1) <= self.gamma * mass.shape[1]
        return torch.zeros_like(within).scatter(1, index, within).view(mass.shape) & causal

    def _short(self, tokens: int) -> bool:
        return tokens <= max(2 * self.block, -(-self.min_budget // self.block) * self.block)

    def _bounds(self, columns: int) -> tuple[int, int]:
        most = columns if self.max_budget is None else min(columns, -(-self.max_budget // self.block))
        return -(-self.min_budget // self.block), most

    def _blocks(self, tokens: Tensor) -> Tensor:
        return tokens // (_RELEASED if self.variant == "released" else self.block) + 1


def _pooled(mass: Tensor, block: int) -> Tensor:
    """Sums over blocks [H,N] → [H,blocks]."""
    missing = -mass.shape[1] % block
    return functional.pad(mass, (0, missing)).view(len(mass), -1, block).sum(-1)


def _pooled_far(mass: Tensor, block: int) -> Tensor:
    """Sums over groups of distances, aligned at the far end [H,N] → [H,blocks]."""
    missing = -mass.shape[1] % block
    return functional.pad(mass, (missing, 0)).view(len(mass), -1, block).sum(-1)


def _coverage(mass: Tensor, share: float) -> Tensor:
    """How many of the largest entries of [H,N] it takes to pass `share` of the mass: [H]."""
    # On a CPU NumPy's vectorised sort takes a fifth of torch's time, and this is the longest part of choosing.
    rising = torch.from_numpy(np.sort(mass.numpy(), -1)) if mass.device.type == "cpu" else mass.sort(-1).values
    return (rising.flip(-1).cumsum(-1) <= share).sum(-1) + 1


def _divergence(e: Tensor, v: Tensor) -> Tensor:
    """Square root of the Jensen-Shannon divergence of distributions [H,n], natural log; a zero entry gives NaN."""
    m = (e + v) / 2
    return (0.5 * (e * (e.log() - m.log())).sum(-1) + 0.5 * (v * (v.log() - m.log())).sum(-1)).sqrt()


def _largest(mass: Tensor, counts: Tensor) -> Tensor:
    """The first and the `counts` [H] largest of mass [H,n], entry 0 always among them, as bool [H,n]."""
    forced = mass.clone()
    forced[:, 0] = torch.inf
    order = forced.argsort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(mass.shape[1], device=mass.device).expand_as(order)
    return torch.zeros_like(order, dtype=torch.bool).scatter(1, order, ranks < counts[:, None])
