"""Shapes of decoders that the kernels are compiled for ahead of time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a decoder.

    Attributes:
        name: Its name.
        layers, width, heads, kv_heads, head_dim, hidden, vocab: As in its configuration; hidden is the MLP's.
    """

    name: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int

    @property
    def parameters(self) -> int:
        """Numbers that a step reads: matrices of the layers, and of the logits."""
        attention = self.width * self.head_dim * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.width * self.hidden) + self.vocab * self.width


MODELS = (
    ModelShape("SmolLM2-135M", 30, 576, 9, 3, 64, 1536, 49152),
    ModelShape("Llama-3-8B", 32, 4096, 32, 8, 128, 14336, 128256),
    ModelShape("Qwen3-8B", 36, 4096, 32, 8, 128, 12288, 151936),
    ModelShape("Qwen3-0.6B", 28, 1024, 16, 8, 128, 3072, 151936),
    ModelShape("Gemma-3-4B", 34, 2560, 8, 4, 256, 10240, 262208),
)

DECODERS = (
    ("SmolLM2-135M", 3, 64), ("80 per head", 4, 80), ("96 per head", 4, 96), ("Llama-3-8B", 4, 128),
    ("Qwen3-0.6B", 2, 128), ("Gemma-3-4B", 2, 256),
)  # fmt: skip
"""Name, query heads per key head, and channels of a head: what attention kernels are compiled for."""
