"""Decoder: a causal language model that embeds, runs its blocks in one loop and projects to logits.

A call may replace three things: `attend` (attention), `ops` (the arithmetic around it) and `tap`, through which named
activations are read and edited. They belong to the call, never to the module. Knows nothing about their users.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from shared.lm.attention import AttentionFn, DenseAttention, Tap, ignore_taps
from shared.lm.blocks import Block, Gemma3Block, GPT2Block, LlamaBlock, OffsetRMSNorm, RMSNorm
from shared.lm.cache import KVCache
from shared.lm.config import DecoderConfig
from shared.lm.ops import TORCH, Ops
from shared.lm.rope import Rotation, frequencies, local_frequencies, rotation


class _GPT2Body(nn.Module):
    """Parameters under `transformer.`."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab, config.width)
        self.wpe = nn.Embedding(config.positions, config.width)
        self.h = nn.ModuleList(GPT2Block(config) for _ in range(config.layers))
        self.ln_f = nn.LayerNorm(config.width, config.norm_eps)


class _LlamaBody(nn.Module):
    """Parameters under `model.`."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab, config.width)
        gemma = config.path == "gemma3"
        block = Gemma3Block if gemma else LlamaBlock
        self.layers = nn.ModuleList(block(config) for _ in range(config.layers))
        self.norm = (OffsetRMSNorm if gemma else RMSNorm)(config.width, config.norm_eps)


class Decoder(nn.Module):
    """A causal language model. State-dict keys, their order and their shapes are the official checkpoint's."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        if config.path == "gpt2":
            self.transformer = _GPT2Body(config)
        else:
            self.model = _LlamaBody(config)
        # A tied Llama file has no output matrix; a GPT-2 state dict lists the tie under its second name.
        if config.path == "gpt2" or not config.tied:
            self.lm_head = nn.Linear(config.width, config.vocab, bias=False)
        self._init_weights()
        self._tie()

    def forward(
        self,
        ids: Tensor,
        *,
        cache: KVCache | None = None,
        attend: AttentionFn | None = None,
        offset: int = 0,
        positions: Tensor | None = None,
        pad: Tensor | None = None,
        keep: int | None = None,
        tap: Tap = ignore_taps,
        ops: Ops = TORCH,
    ) -> Tensor:
        """Compute the logits of `ids`.

        Args:
            ids: Tokens [B,T].
            cache: Continue from it, and extend it.
            attend: Replaces causal attention over `cache`; where both are given, `attend` writes the cache.
            offset: Position of the first token where there is no cache but `attend` remembers what came before.
            positions: Positions for embedding or rotation [B,T], where rows differ; default `offset`, `offset`+1, ….
            pad: Left padding per row [B]: those tokens are seen by nobody, and positions count from behind them.
            keep: Only the last `keep` positions get logits; None keeps all. With 0 the last block does not go beyond
                its attention: only the cache, or what `attend` remembers, is asked for.
            tap: Reads and edits named activations; see `shared.lm.taps`.
            ops: Computes norms, products and rotations of Llama-like layers; other layers use torch.

        Returns:
            Logits [B,T,V], or [B,keep,V].

        Raises:
            ValueError: A GPT-2 position behind its table.
        """
        if cache is not None:
            offset, pad = cache.length, cache.set_padding(pad)
        if attend is None:
            attend = DenseAttention(cache, pad, self.config.windows)
        if positions is None:
            positions = _count_positions(ids, offset, pad)
            self.check_positions(offset + ids.shape[1])  # the longest row has no padding
        x = self._embed(ids, positions)
        rotations = self.rotations(positions, x.dtype)
        x = tap("embed", -1, x if self.config.path == "gpt2" else ops.widen(x))
        for layer, block in enumerate(self.blocks):
            if keep == 0 and layer == self.config.layers - 1 and tap is ignore_taps:
                x = _write_cache_only(block, layer, x, rotations[layer], attend, offset, ops)
            else:
                x = _run_block(block, layer, x, rotations[layer], attend, offset, tap, ops)
        if cache is not None:
            cache.length += ids.shape[1]
        x = tap("normed", -1, self._norm(tap("final", -1, x), ops))
        if keep is None:
            return ops.logits(x, self.output_matrix)
        # As plain rows: of a slice [B,keep,D] torch makes a batched product, and copies the matrix for it.
        x = x[:, x.shape[1] - keep :]
        return ops.logits(x.flatten(0, 1), self.output_matrix).view(*x.shape[:2], self.config.vocab)

    @property
    def blocks(self) -> list[Block]:
        """The layers in order."""
        return cast("list[Block]", self.transformer.h if self.config.path == "gpt2" else self.model.layers)

    @property
    def output_matrix(self) -> Tensor:
        """The matrix from the normed residual stream to logits [V,D]."""
        head = getattr(self, "lm_head", None)
        return self.model.embed_tokens.weight if head is None else cast("Tensor", head.weight)

    def read_logits(self, x: Tensor, ops: Ops = TORCH) -> Tensor:
        """Read residual streams [...,D] out as logits [...,V]: the final norm, then the output matrix."""
        return ops.logits(self._norm(x, ops), self.output_matrix)

    def new_cache(self, batch: int = 1, room: int = 0) -> KVCache:
        """Create an empty cache with this model's dtype and device."""
        like = self.output_matrix
        return KVCache(self.config, batch, room=room, dtype=like.dtype, device=like.device)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load official weights; the tie of a tied GPT-2 survives files with and without the second name."""
        result = super().load_state_dict(state_dict, strict=strict, assign=assign)
        self._tie()
        return result

    def rotations(self, positions: Tensor, dtype: torch.dtype) -> list[Rotation | None]:
        """Return the rotation of q and k at positions ([T] or [B,T]) per layer; None where positions are embedded."""
        config, L = self.config, self.config.layers
        if config.path == "gpt2":
            return [None] * L
        whole = rotation(frequencies(config, positions.device), positions, dtype)
        if config.windows is None:
            return [whole] * L
        local = rotation(local_frequencies(config, positions.device), positions, dtype)
        return [whole if window is None else local for window in config.windows]

    def _embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        if self.config.path == "gpt2":
            return cast("Tensor", self.transformer.wte(ids) + self.transformer.wpe(positions))
        x = cast("Tensor", self.model.embed_tokens(ids))
        # Gemma's factor is rounded in the model's dtype, as its authors did.
        if self.config.path != "gemma3":
            return x
        return x * torch.tensor(self.config.width**0.5, dtype=x.dtype, device="cpu")

    def check_positions(self, end: int) -> None:
        """Raise ValueError: GPT-2's table ends before `end`. Callers check explicit positions, which devices hold."""
        if self.config.path == "gpt2" and end > self.config.positions:
            raise ValueError(f"this GPT-2 knows {self.config.positions} positions, not {end}")

    def _norm(self, x: Tensor, ops: Ops) -> Tensor:
        if self.config.path == "gpt2":
            return cast("Tensor", self.transformer.ln_f(x))
        return ops.norm(x, self.model.norm)

    def _tie(self) -> None:
        if self.config.path == "gpt2" and self.config.tied:
            self.lm_head.weight = self.transformer.wte.weight

    @torch.no_grad()
    def _init_weights(self) -> None:
        """Small random matrices and no biases, so that an untrained model is near uniform."""
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)


def _count_positions(ids: Tensor, offset: int, pad: Tensor | None) -> Tensor:
    positions = torch.arange(offset, offset + ids.shape[1], device=ids.device)
    return positions if pad is None else (positions - pad[:, None]).clamp(min=0)


def _run_block(
    block: Block, layer: int, x: Tensor, turn: Rotation | None, attend: AttentionFn, offset: int, tap: Tap, ops: Ops
) -> Tensor:
    """Run one block on x [B,T,D], with a tap at every named activation."""
    x = tap("resid_pre", layer, x)
    q, k, v = block.project(x, ops)
    q, k, v = tap("q", layer, q), tap("k", layer, k), tap("v", layer, v)
    q, k = block.apply_positions(q, k, turn, ops)
    q, k = tap("q_rot", layer, q), tap("k_rot", layer, k)
    z = tap("z", layer, attend(layer, q, k, v, offset))
    x = tap("resid_mid", layer, x + tap("attn_out", layer, block.output(z, ops)))
    return tap("resid_post", layer, x + tap("mlp_out", layer, block.feed(x, ops)))


def _write_cache_only(
    block: Block, layer: int, x: Tensor, turn: Rotation | None, attend: AttentionFn, offset: int, ops: Ops
) -> Tensor:
    """Run a block whose output nobody reads, up to its keys and values; x [B,T,D] is returned unchanged."""
    q, k, v = block.project(x, ops)
    attend(layer, *block.apply_positions(q, k, turn, ops), v, offset)
    return x
