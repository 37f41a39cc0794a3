"""DHSA, dynamic hierarchical sparse attention (2025, 2026): prompts are read by chunks or by blocks.

`chunks` is the abstract's algorithm, made causal-safe; `topk`, `a`, `vs` and `vsb` are the masks of the later code.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from fovea.errors import InvalidOption
from services.llm_longctx.kernels import BlockCsr
from services.llm_longctx.methods.core.attention_method import AttentionMethod, Reference
from services.llm_longctx.methods.core.hook_inputs import Chunk
from services.llm_longctx.methods.core.hook_results import Blocks, Dense, PrefillPlan, TokenLists, TokenRows
from services.llm_longctx.methods.core.oracle import attention_weights, blocks_to_tokens, causal_mask, repeat_kv
from services.llm_longctx.methods.core.sparsity_claims import build_method_claim
from services.llm_longctx.methods.dhsa.blocks import BlockGrid, select_blocks
from services.llm_longctx.methods.dhsa.chunks import fixed_boundaries, select_tokens
from shared.lm.head_plan import HeadPlan


class Dhsa(AttentionMethod):
    """Blocks of queries read the tokens or blocks whose averages promise most; decoding is dense, nothing is freed.

    `chunks` shares one list of tokens among all heads, from chunks of the text; without given boundaries the chunks
    have one length. The other variants choose key blocks per query head, `topk` only causal ones unless told.
    """

    name: ClassVar[str] = "dhsa"
    phases = frozenset({"prefill"})
    actions = frozenset({"visibility"})
    granularity = "block"
    evidence = "block means"
    chunk_invariant = False
    sparsity = build_method_claim("dhsa", granularity="token-topk", mask="dynamic", prefill="sparse")

    variant: Literal["chunks", "topk", "a", "vs", "vsb"] = Field("chunks", description="How is chosen.")
    block: int = Field(64, ge=1, le=4096, description="Queries that share a selection.")
    budget: int = Field(1024, ge=1, description="chunks: tokens that a block of queries reads.")
    pooling: Literal["mean_sqrt", "mean"] = Field("mean_sqrt", description="chunks: how averages are scaled.")
    global_tokens: int = Field(128, ge=0, description="chunks: first tokens, always read.")
    local_tokens: int = Field(128, ge=1, description="chunks: last allowed tokens, always read.")
    instruction: int = Field(64, ge=0, description="chunks: last queries of the prompt, which read everything.")
    chunk: int = Field(32, ge=1, description="chunks: length where no boundaries are given.")
    dedupe: bool = Field(True, description="chunks: a token that is listed twice counts once.")
    key_block: int = Field(32, ge=1, le=4096, description="Other variants: tokens of a key block.")
    density: float = Field(0.125, gt=0, le=1, description="Other variants: share of key blocks that a row keeps.")
    causal_safe: bool = Field(True, description="topk: rank causal blocks only and keep the diagonal.")

    contract_knobs: ClassVar = (
        {"block": 8, "budget": 14, "global_tokens": 2, "local_tokens": 8, "instruction": 3, "chunk": 4},
        {"block": 4, "budget": 14, "global_tokens": 6, "local_tokens": 4, "instruction": 3, "dedupe": False},
        {"variant": "topk", "block": 8, "key_block": 4, "density": 0.4, "causal_safe": True},
        {"variant": "vs", "block": 8, "key_block": 4, "density": 0.4},
    )

    def reference(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        boundaries: Sequence[int] | None = None,
        indices: Tensor | None = None,
        **inputs: Any,
    ) -> Reference:
        H, N = q.shape[:2]
        if self.variant != "chunks":
            grid = BlockGrid(N, 0, self.block, self.key_block, self.density)
            safe = self.causal_safe and "causal_safe" in self.model_fields_set
            kept = select_blocks(self.variant, q.double(), k.double(), grid, causal_safe=safe)
            mask = blocks_to_tokens(kept, self.block, self.key_block, N)
            return Reference(attention_weights(q, k, mask) @ repeat_kv(v, H), mask, {"block_mask": kept})
        if indices is None:
            indices = self._tokens(q.double(), k.double(), 0, max(N - self.instruction, 0), boundaries)
        copies = torch.ones(N, N, dtype=torch.float64)
        rows = torch.arange(max(N - self.instruction, 0))
        listed = torch.zeros(len(indices), N, dtype=torch.float64)
        listed.scatter_add_(1, indices.long(), torch.ones(indices.shape, dtype=torch.float64))
        copies[: len(rows)] = listed[rows // self.block]
        mask = (copies > 0) & causal_mask(N)
        bias = torch.zeros_like(copies) if self.dedupe else copies.clamp(min=1).log()
        out = attention_weights(q, k, mask, bias) @ repeat_kv(v, H)
        return Reference(out, mask.expand(H, N, N), {"indices": indices}, bias.expand(H, N, N))

    def bind(self, plan: HeadPlan | None) -> Self:
        if self.variant == "chunks" and self.budget < (least := self.global_tokens + self.local_tokens):
            detail = f"dhsa's budget must hold global_tokens and local_tokens: {least}, and it is {self.budget}."
            raise InvalidOption(detail, hint="Tokens would not read their own neighbours.", field="longctx.budget")
        return self

    def prefill_plan(self, chunk: Chunk) -> PrefillPlan:
        N = chunk.k.shape[1]
        if chunk.evicting:
            return Dense()
        if self.variant == "chunks":
            return self._lists(chunk, N)
        if chunk.offset % self.block:
            return Dense()
        first, device = chunk.offset // self.block, chunk.q.device
        grid = BlockGrid(N, first, self.block, self.key_block, self.density, last=chunk.last, device=device)
        kept = select_blocks(self.variant, chunk.q, chunk.k, grid, causal_safe=self.causal_safe)
        return Blocks(BlockCsr.from_mask(kept, self.block, key_block=self.key_block, first=grid.first))

    def _lists(self, chunk: Chunk, N: int) -> PrefillPlan:
        end = max(N - (self.instruction if chunk.last else 0), chunk.offset)
        if end == chunk.offset or (self.budget >= N and self.dedupe):
            return Dense()
        queries, borders = chunk.q[:, : end - chunk.offset], chunk.boundaries
        if borders is not None:  # those of the whole prompt, of which N tokens are read
            borders = (*(border for border in borders if border < N), N)
        chosen = self._tokens(queries, chunk.k, chunk.offset, end, borders)
        rows, first = [], chunk.offset // self.block
        for row, tokens in enumerate(chosen, first):
            until = min((row + 1) * self.block, end)
            seen = tokens[tokens < until]
            seen = seen.unique() if self.dedupe else seen
            rows.append(TokenRows(max(row * self.block, chunk.offset), until, seen))
        if end < N:
            rows.append(TokenRows(end, N, None))
        return TokenLists(tuple(rows), self.block)

    def _tokens(self, q: Tensor, k: Tensor, begin: int, end: int, boundaries: Sequence[int] | None) -> Tensor:
        wide, N = torch.promote_types(q.dtype, torch.float32), k.shape[1]
        return select_tokens(
            q[:, : end - begin].to(wide).mean(0),
            k.to(wide).mean(0),
            boundaries or fixed_boundaries(N, self.chunk),
            begin=begin,
            end=end,
            block=self.block,
            budget=self.budget,
            local=self.local_tokens,
            sinks=self.global_tokens,
            normalised=self.pooling == "mean_sqrt",
        )
