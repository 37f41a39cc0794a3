"""The tiny decoder of the examples: a Llama over bytes, small enough to be part of the package."""

from __future__ import annotations

from shared.lm.builders import llama
from shared.lm.decoder import Decoder
from shared.registry import builder


@builder("tiny-induction")
def tiny_induction(*, width: int = 64, layers: int = 3, heads: int = 4, kv_heads: int = 2) -> Decoder:
    """Build a Llama of 256 tokens and 2,048 positions, output tied to the embedding."""
    sizes = {"layers": layers, "kv_heads": kv_heads, "hidden": 2 * width, "vocab": 256, "positions": 2048}
    return llama(width=width, heads=heads, rope_theta=10_000.0, tied=True, **sizes)
