"""Landmark networks: the two that landmark attention was published in, a GPT without biases, and LLaMA.

Their base class has the pass over all tokens; streaming is in `session`. Knows the keys of the official checkpoints.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fovea_memory.mixers.landmark.attention import landmark_softmax, regular_softmax
from fovea_memory.mixers.landmark.session import LandmarkSession
from fovea_memory.mixers.rope import rotate_halves, rotate_pairs
from shared.lm.blocks import LlamaBlock, RMSNorm
from shared.lm.config import DecoderConfig
from shared.registry import builder


class LandmarkLM(nn.Module):
    """Base of both networks: the uncached forward pass of training, and sessions.

    Attributes:
        block: Ordinary tokens L of a block.
        landmark_id: The token that closes one.
        context: Longest sequence that it was trained on, landmarks included.
        max_blocks: Older blocks that a token may read in the uncached forward pass; None is all. Training sets it.
    """

    optional: tuple[str, ...]
    """Endings of keys that a checkpoint may carry and that hold nothing to load."""

    def __init__(self, block: int, landmark_id: int, context: int) -> None:
        super().__init__()
        self.block, self.landmark_id, self.context = block, landmark_id, context
        self.max_blocks: int | None = None

    layers: Any

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """Residual stream [B,T,D] of tokens."""

    @abstractmethod
    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rotary positions on x [...,d]."""

    @abstractmethod
    def logits(self, x: Tensor) -> Tensor:
        """Final norm and output matrix."""

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [B,T,V] of `ids` [B,T], landmarks among them: the uncached form, as trained."""
        at = torch.arange(ids.shape[1], device=ids.device)
        landmark = ids == self.landmark_id
        x = self.embed(ids)
        for block in self.layers:
            q, k, v = (part.transpose(1, 2) for part in block.project(x))
            mixed = self.attend(self.rotate(q, at), self.rotate(k, at), v, landmark)
            x = x + block.output(mixed.transpose(1, 2))
            x = x + block.feed(x)
        return self.logits(x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, landmark: Tensor) -> Tensor:
        """Attention [B,H,T,d] in the cheapest form that the landmarks [B,T] allow."""
        if not bool(landmark.any()):  # one open block: plain causal attention
            return functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        scores = q @ k.mT * q.shape[-1] ** -0.5
        at = torch.arange(q.shape[2], device=q.device)
        regular = bool((landmark == ((at + 1) % (self.block + 1) == 0)).all())
        weights = (
            regular_softmax(scores, self.block, self.max_blocks) if regular else landmark_softmax(scores, landmark)
        )
        return weights @ v

    def session(self, batch: int = 1, **options: Any) -> LandmarkSession:
        """Start a stream that is read chunk by chunk; options are those of `LandmarkSession`."""
        return LandmarkSession(self, batch, **options)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load official weights; buffers that the network makes itself may be in the file or not."""
        kept = {key: value for key, value in state_dict.items() if not key.endswith(self.optional)}
        return super().load_state_dict(kept, strict=strict, assign=assign)


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
