"""Builders of decoders that `network(name, …)` finds: one per family, with the family's own keywords.

Each returns a `Decoder` with small random weights. Knows nothing about files.
"""

from __future__ import annotations

from shared.lm.config import DecoderConfig, RopeScaling
from shared.lm.decoder import Decoder
from shared.registry import builder


@builder("gpt2")
def gpt2(
    *, vocab: int, width: int, layers: int, heads: int, hidden: int, positions: int, norm_eps: float = 1e-5
) -> Decoder:
    """Build a GPT-2: learned positions, LayerNorm, biases everywhere, output tied to the token embedding."""
    return Decoder(
        DecoderConfig(
            path="gpt2",
            vocab=vocab,
            width=width,
            layers=layers,
            heads=heads,
            kv_heads=heads,
            head_dim=width // heads,
            hidden=hidden,
            positions=positions,
            norm_eps=norm_eps,
            tied=True,
        )
    )


@builder("llama")
def llama(
    *,
    vocab: int,
    width: int,
    layers: int,
    heads: int,
    kv_heads: int,
    hidden: int,
    positions: int,
    rope_theta: float = 10000.0,
    norm_eps: float = 1e-5,
    tied: bool = False,
    head_dim: int | None = None,
    rope_scaling: RopeScaling | None = None,
    qkv_bias: bool = False,
    out_bias: bool = False,
    qk_norm: bool = False,
) -> Decoder:
    """Build a Llama: rotary positions, RMSNorm, grouped heads, gated MLP; the last four options are its relatives'."""
    return Decoder(
        DecoderConfig(
            path="llama",
            vocab=vocab,
            width=width,
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim or width // heads,
            hidden=hidden,
            positions=positions,
            norm_eps=norm_eps,
            tied=tied,
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            qkv_bias=qkv_bias,
            out_bias=out_bias,
            qk_norm=qk_norm,
        )
    )


@builder("qwen2")
def qwen2(
    *,
    vocab: int,
    width: int,
    layers: int,
    heads: int,
    kv_heads: int,
    hidden: int,
    positions: int,
    rope_theta: float = 1e6,
    norm_eps: float = 1e-6,
    tied: bool = True,
    head_dim: int | None = None,
) -> Decoder:
    """Build a Qwen2: Llama with biases on q, k and v."""
    return llama(
        vocab=vocab,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        hidden=hidden,
        positions=positions,
        rope_theta=rope_theta,
        norm_eps=norm_eps,
        tied=tied,
        head_dim=head_dim,
        qkv_bias=True,
    )


@builder("gemma3")
def gemma3(
    *,
    vocab: int,
    width: int,
    layers: int,
    heads: int,
    kv_heads: int,
    hidden: int,
    positions: int,
    rope_theta: float = 1e6,
    norm_eps: float = 1e-6,
    tied: bool = True,
    head_dim: int = 256,
    window: int = 512,
    every: int = 6,
    local_theta: float = 10000.0,
    query_scale: float | None = None,
    rope_scaling: RopeScaling | None = None,
) -> Decoder:
    """Build a Gemma 3 (text): every `every`-th layer sees all, the others a `window` with their own rotation."""
    return Decoder(
        DecoderConfig(
            path="gemma3",
            vocab=vocab,
            width=width,
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            hidden=hidden,
            positions=positions,
            norm_eps=norm_eps,
            tied=tied,
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            qk_norm=True,
            local_theta=local_theta,
            query_scale=query_scale,
            windows=tuple(None if (layer + 1) % every == 0 else window for layer in range(layers)),
        )
    )
