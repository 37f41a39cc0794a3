"""Decoder blocks of all families behind one interface, so that one loop runs any of them.

A block has four steps: `project` (norm, then q, k, v), `apply_positions` (per-head norm and rotation of q and k),
`output` (what mixed values add to the residual stream) and `feed` (what the MLP adds). Parameter names are the official
state-dict keys; norms and products of the Llama-like ones go through `shared.lm.ops`. Knows nothing about attention
itself, caches or taps.
"""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from shared.lm.config import DecoderConfig
from shared.lm.ops import TORCH, Ops
from shared.lm.rope import Rotation


class Block(Protocol):
    """One layer, as the decoder sees it. x is [B,T,D]; q [B,T,H,d]; k, v [B,T,G,d]."""

    def project(self, x: Tensor, ops: Ops = TORCH) -> tuple[Tensor, Tensor, Tensor]:
        """Apply the first norm, then project to q, k and v with their biases, before any rotation."""

    def apply_positions(self, q: Tensor, k: Tensor, turn: Rotation | None, ops: Ops = TORCH) -> tuple[Tensor, Tensor]:
        """Apply the per-head norm and the rotation to q and k."""

    def output(self, z: Tensor, ops: Ops = TORCH) -> Tensor:
        """Project the heads' mixed values z [B,T,H,d] into the residual stream."""

    def feed(self, x: Tensor, ops: Ops = TORCH) -> Tensor:
        """Apply the second norm and the MLP."""


class RMSNorm(nn.Module):
    """x / sqrt(mean x² + eps) · weight, in float32 or wider whatever the model's dtype."""

    offset = 0.0

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


class OffsetRMSNorm(RMSNorm):
    """RMSNorm whose weight is stored less one: x / sqrt(mean x² + eps) · (1 + weight), in float32 or wider."""

    offset = 1.0

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, eps)
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        wide = torch.promote_types(x.dtype, torch.float32)
        return functional.rms_norm(x.to(wide), self.weight.shape, 1 + self.weight.to(wide), self.eps).to(x.dtype)


class InputFirst(nn.Module):
    """y = x W + b with W [in, out], the way GPT-2 stores its matrices."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to the last axis."""
        return functional.linear(x, self.weight.t(), self.bias)


class _FusedAttention(nn.Module):
    """GPT-2's projections: q, k and v are column blocks of one matrix, each head-major."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.c_attn = InputFirst(config.width, 3 * config.width)
        self.c_proj = InputFirst(config.width, config.width)


class _GeluMLP(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.c_fc = InputFirst(config.width, config.hidden)
        self.c_proj = InputFirst(config.hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.c_proj(functional.gelu(self.c_fc(x), approximate="tanh"))
        return added


class GPT2Block(nn.Module):
    """LayerNorm, fused projections with biases, GELU MLP."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.ln_1 = nn.LayerNorm(config.width, config.norm_eps)
        self.attn = _FusedAttention(config)
        self.ln_2 = nn.LayerNorm(config.width, config.norm_eps)
        self.mlp = _GeluMLP(config)

    def project(self, x: Tensor, ops: Ops = TORCH) -> tuple[Tensor, Tensor, Tensor]:
        """First norm, then the fused projection cut in three."""
        q, k, v = self.attn.c_attn(self.ln_1(x)).unflatten(-1, (3, -1, self.head_dim)).unbind(-3)
        return q, k, v

    def apply_positions(self, q: Tensor, k: Tensor, turn: Rotation | None, ops: Ops = TORCH) -> tuple[Tensor, Tensor]:
        """Positions are in the embedding already."""
        return q, k

    def output(self, z: Tensor, ops: Ops = TORCH) -> Tensor:
        """Join the heads."""
        added: Tensor = self.attn.c_proj(z.flatten(-2))
        return added

    def feed(self, x: Tensor, ops: Ops = TORCH) -> Tensor:
        """Second norm and MLP."""
        added: Tensor = self.mlp(self.ln_2(x))
        return added


class _SplitAttention(nn.Module):
    """Llama's projections: H query heads share G key/value heads; Qwen2 adds biases, others a norm per head."""

    def __init__(self, config: DecoderConfig, norm: type[RMSNorm]) -> None:
        super().__init__()
        d, D = config.head_dim, config.width
        self.q_proj = nn.Linear(D, config.heads * d, bias=config.qkv_bias)
        self.k_proj = nn.Linear(D, config.kv_heads * d, bias=config.qkv_bias)
        self.v_proj = nn.Linear(D, config.kv_heads * d, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.heads * d, D, bias=config.out_bias)
        if config.qk_norm:
            self.q_norm = norm(d, config.norm_eps)
            self.k_norm = norm(d, config.norm_eps)


class _GatedMLP(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.up_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.down_proj = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x: Tensor, ops: Ops = TORCH, norm: RMSNorm | None = None) -> Tensor:
        return ops.products(ops.swiglu(x, self.gate_proj, self.up_proj, norm), (self.down_proj,), added=True)[0]


class _SplitBlock(nn.Module):
    """Parts that Llama and Gemma 3 share; their norms are of one kind."""

    def __init__(self, config: DecoderConfig, norm: type[RMSNorm]) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.self_attn = _SplitAttention(config, norm)
        self.mlp = _GatedMLP(config)
        self.input_layernorm = norm(config.width, config.norm_eps)
        self.post_attention_layernorm = norm(config.width, config.norm_eps)

    def project(self, x: Tensor, ops: Ops = TORCH) -> tuple[Tensor, Tensor, Tensor]:
        """First norm, then three projections."""
        attn = self.self_attn
        q, k, v = ops.products(x, (attn.q_proj, attn.k_proj, attn.v_proj), self.input_layernorm)
        return _heads(q, self.head_dim), _heads(k, self.head_dim), _heads(v, self.head_dim)


class LlamaBlock(_SplitBlock):
    """RMSNorm, rotary positions, grouped heads, gated MLP."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config, RMSNorm)
        self.qk_norm = config.qk_norm

    def apply_positions(self, q: Tensor, k: Tensor, turn: Rotation | None, ops: Ops = TORCH) -> tuple[Tensor, Tensor]:
        """Norm per head where the family has one, then rotation."""
        if self.qk_norm:
            q, k = ops.norm(q, self.self_attn.q_norm), ops.norm(k, self.self_attn.k_norm)
        return (q, k) if turn is None else ops.rotate(q, k, turn)

    def output(self, z: Tensor, ops: Ops = TORCH) -> Tensor:
        """Join the heads."""
        return ops.products(z.flatten(-2), (self.self_attn.o_proj,), added=True)[0]

    def feed(self, x: Tensor, ops: Ops = TORCH) -> Tensor:
        """Second norm and MLP."""
        added: Tensor = self.mlp(x, ops, self.post_attention_layernorm)
        return added


class Gemma3Block(_SplitBlock):
    """Llama's block with norms on both sides of attention and MLP, a norm per head, and GELU in the gate."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config, OffsetRMSNorm)
        # Scores are scaled by 1/sqrt(d) whoever computes them; another scale goes into the queries.
        self.query_factor = (config.head_dim / (config.query_scale or config.head_dim)) ** 0.5
        self.pre_feedforward_layernorm = OffsetRMSNorm(config.width, config.norm_eps)
        self.post_feedforward_layernorm = OffsetRMSNorm(config.width, config.norm_eps)

    def apply_positions(self, q: Tensor, k: Tensor, turn: Rotation | None, ops: Ops = TORCH) -> tuple[Tensor, Tensor]:
        """Norm per head, rotation, and the family's own scale."""
        q, k = ops.norm(q, self.self_attn.q_norm), ops.norm(k, self.self_attn.k_norm)
        if turn is not None:
            q, k = ops.rotate(q, k, turn)
        return q if self.query_factor == 1 else q * self.query_factor, k

    def output(self, z: Tensor, ops: Ops = TORCH) -> Tensor:
        """Join the heads, then the second norm."""
        joined = ops.products(z.flatten(-2), (self.self_attn.o_proj,), added=True)[0]
        return ops.norm(joined, self.post_attention_layernorm)

    def feed(self, x: Tensor, ops: Ops = TORCH) -> Tensor:
        """Third norm, MLP, fourth norm."""
        mlp = self.mlp
        gate, up = ops.products(x, (mlp.gate_proj, mlp.up_proj), self.pre_feedforward_layernorm)
        mixed = functional.gelu(gate, approximate="tanh") * up
        return ops.norm(ops.products(mixed, (mlp.down_proj,), added=True)[0], self.post_feedforward_layernorm)


def _heads(x: Tensor, head_dim: int) -> Tensor:
    """[B,T,H·d] → [B,T,H,d]."""
    return x.view(*x.shape[:-1], -1, head_dim)
