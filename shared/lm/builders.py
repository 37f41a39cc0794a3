"""Builders of decoders that `network(name, …)` finds: one per family, with the family's own keywords.

Each returns a `Decoder` with small random weights; `sizes` are other fields of `DecoderConfig`. Knows no files.
"""

from typing import Any

from shared.lm.config import DecoderConfig
from shared.lm.decoder import Decoder
from shared.registry import builder


@builder("gpt2")
def gpt2(*, width: int, heads: int, norm_eps: float = 1e-5, **sizes: Any) -> Decoder:
    """Build a GPT-2: learned positions, LayerNorm, biases everywhere, output tied to the token embedding."""
    own: dict[str, Any] = {"width": width, "heads": heads, "kv_heads": heads, "head_dim": width // heads}
    return Decoder(DecoderConfig(path="gpt2", norm_eps=norm_eps, tied=True, **own, **sizes))


@builder("llama")
def llama(
    *, width: int, heads: int, head_dim: int | None = None, norm_eps: float = 1e-5, tied: bool = False, **sizes: Any
) -> Decoder:
    """Build a Llama: rotary positions, RMSNorm, grouped heads, gated MLP; biases and norms are its relatives'."""
    own: dict[str, Any] = {"width": width, "heads": heads, "head_dim": head_dim or width // heads}
    return Decoder(DecoderConfig(path="llama", norm_eps=norm_eps, tied=tied, **own, **sizes))


@builder("qwen2")
def qwen2(*, rope_theta: float = 1e6, norm_eps: float = 1e-6, tied: bool = True, **sizes: Any) -> Decoder:
    """Build a Qwen2: Llama with biases on q, k and v."""
    return llama(rope_theta=rope_theta, norm_eps=norm_eps, tied=tied, qkv_bias=True, **sizes)


@builder("gemma3")
def gemma3(
    *,
    layers: int,
    rope_theta: float = 1e6,
    norm_eps: float = 1e-6,
    tied: bool = True,
    head_dim: int = 256,
    window: int = 512,
    every: int = 6,
    **sizes: Any,
) -> Decoder:
    """Build a Gemma 3 (text): every `every`-th layer sees all, the others a `window` with their own rotation."""
    own: dict[str, Any] = {
        "layers": layers, "head_dim": head_dim, "rope_theta": rope_theta, "norm_eps": norm_eps, "tied": tied,
    }  # fmt: skip
    windows = tuple(None if (layer + 1) % every == 0 else window for layer in range(layers))
    return Decoder(DecoderConfig(path="gemma3", qk_norm=True, windows=windows, **own, **sizes))
