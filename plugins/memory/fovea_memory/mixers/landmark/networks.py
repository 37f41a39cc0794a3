"""Landmark networks: the two that landmark attention was published in, a GPT without biases, and LLaMA.

Knows the official checkpoints' keys, key for key; the pass over all tokens and streaming are in `session`.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fovea_memory.mixers.landmark.session import LandmarkLM
from fovea_memory.mixers.rope import rotate_halves, rotate_pairs
from shared.lm.blocks import LlamaBlock, RMSNorm
from shared.lm.config import DecoderConfig
from shared.registry import builder


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_attn = nn.Linear(width, 3 * width, bias=False)
        self.c_proj = nn.Linear(width, width, bias=False)


class _MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width, bias=False)
        self.c_proj = nn.Linear(4 * width, width, bias=False)


class _GPTBlock(nn.Module):
    """LayerNorm without biases, fused projections, GELU."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1 = nn.LayerNorm(width, 1e-5, bias=False)
        self.attn = _Attention(width)
        self.ln_2 = nn.LayerNorm(width, 1e-5, bias=False)
        self.mlp = _MLP(width)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v [B,T,H,d], not rotated."""
        q, k, v = self.attn.c_attn(self.ln_1(x)).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        return q, k, v

    def output(self, z: Tensor) -> Tensor:
        """Join the heads."""
        added: Tensor = self.attn.c_proj(z.flatten(-2))
        return added

    def feed(self, x: Tensor) -> Tensor:
        """Second norm and MLP."""
        added: Tensor = self.mlp.c_proj(functional.gelu(self.mlp.c_fc(self.ln_2(x))))
        return added


@builder("landmark-gpt")
class LandmarkGPT(LandmarkLM):
    """A GPT-2 shape without biases, output tied to the embedding, rotary positions on interleaved pairs."""

    optional = ("wpe.freqs", "attn.bias", "lm_head.weight")

    def __init__(
        self, vocab: int, width: int, layers: int, heads: int, block: int, landmark_id: int, context: int
    ) -> None:
        super().__init__(block, landmark_id, context)
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocab, width),
                "h": nn.ModuleList(_GPTBlock(width, heads) for _ in range(layers)),
                "ln_f": nn.LayerNorm(width, 1e-5, bias=False),
            }
        )
        _init_weights(self)

    @property
    def layers(self) -> list[_GPTBlock]:
        """Blocks in order."""
        return cast("list[_GPTBlock]", self.transformer["h"])

    def embed(self, ids: Tensor) -> Tensor:
        x: Tensor = self.transformer["wte"](ids)
        return x

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        return rotate_pairs(x, positions)

    def logits(self, x: Tensor) -> Tensor:
        return functional.linear(self.transformer["ln_f"](x), cast("Tensor", self.transformer["wte"].weight))


class _LlamaBody(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab, config.width)
        self.layers = nn.ModuleList(LlamaBlock(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)


class LandmarkLlama(LandmarkLM):
    """LLaMA with landmark attention: the decoder's own blocks, rotary positions on halves."""

    optional = ("rotary_emb.inv_freq",)

    def __init__(self, config: DecoderConfig, block: int, landmark_id: int) -> None:
        super().__init__(block, landmark_id, config.positions)
        self.model = _LlamaBody(config)
        self.lm_head = nn.Linear(config.width, config.vocab, bias=False)
        _init_weights(self)

    @property
    def layers(self) -> list[LlamaBlock]:
        """Blocks in order."""
        return cast("list[LlamaBlock]", self.model.layers)

    def embed(self, ids: Tensor) -> Tensor:
        x: Tensor = self.model.embed_tokens(ids)
        return x

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        return rotate_halves(x, positions)

    def logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.lm_head(self.model.norm(x))
        return logits


@torch.no_grad()
def _init_weights(net: nn.Module) -> None:
    for parameter in net.parameters():
        if parameter.dim() > 1:
            # By width and not a constant: at 0.02 a narrow network's scores are too small for its heads to tell apart.
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)


@builder("landmark-llama")
def landmark_llama(
    vocab: int, width: int, intermediate: int, layers: int, heads: int, block: int, landmark_id: int, context: int
) -> LandmarkLlama:
    """The LLaMA of the paper's fine-tuning experiments, with random weights."""
    config = DecoderConfig(
        path="llama",
        vocab=vocab,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_dim=width // heads,
        hidden=intermediate,
        positions=context,
        norm_eps=1e-6,
        tied=False,
    )
    return LandmarkLlama(config, block, landmark_id)
