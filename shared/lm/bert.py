"""BERT encoder (Devlin et al., 2019, arXiv:1810.04805), as the family of sentence embedders uses it: post-norm layers.

Knows tensors and the names of official files; knows no text and no pooling.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class BertConfig:
    """Sizes of an encoder.

    Attributes:
        vocab: Token ids are below this.
        hidden: Width.
        layers: Number of layers.
        heads: Attention heads of each.
        ffn: Width of the feed-forward network.
        positions: Longest sequence, in tokens.
        eps: Added to variances by layer norms.
    """

    vocab: int = 30522
    hidden: int = 384
    layers: int = 6
    heads: int = 12
    ffn: int = 1536
    positions: int = 512
    eps: float = 1e-12

    @classmethod
    def from_official(cls, facts: Mapping[str, Any]) -> Self:
        """Read the fields of an official `config.json`."""
        return cls(
            vocab=facts["vocab_size"],
            hidden=facts["hidden_size"],
            layers=facts["num_hidden_layers"],
            heads=facts["num_attention_heads"],
            ffn=facts["intermediate_size"],
            positions=facts["max_position_embeddings"],
            eps=facts.get("layer_norm_eps", 1e-12),
        )


class BertEncoder(nn.Module):
    """Token, position and segment embeddings, and a stack of post-norm layers. Names are those of official files."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = _Embeddings(config)
        layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        self.encoder = nn.ModuleDict({"layer": layers})
        self._layers = list(layers)  # a list, which hides them from `state_dict`: they are there already

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Hidden states [b,t,d] of ids [b,t]; tokens where mask [b,t] is False are seen by none."""
        x = self.embeddings(ids)
        visible = mask[:, None, None, :]
        for layer in self._layers:
            x = layer(x, visible)
        return torch.as_tensor(x)


class _Embeddings(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab, config.hidden)
        self.position_embeddings = nn.Embedding(config.positions, config.hidden)
        self.token_type_embeddings = nn.Embedding(2, config.hidden)
        self.LayerNorm = nn.LayerNorm(config.hidden, config.eps)

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        x = self.word_embeddings(ids) + self.position_embeddings(places) + self.token_type_embeddings.weight[0]
        return torch.as_tensor(self.LayerNorm(x))


class _Layer(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        d = config.hidden
        self.heads = config.heads
        self.attention = nn.ModuleDict(
            {
                "self": nn.ModuleDict({name: nn.Linear(d, d) for name in ("query", "key", "value")}),
                "output": _Residual(d, d, config.eps),
            }
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(d, config.ffn)})
        self.output = _Residual(config.ffn, d, config.eps)

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        own: Any = self.attention["self"]
        q, k, v = (own[name](x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for name in ("query", "key", "value"))
        read = functional.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        x = self.attention["output"](read.transpose(1, 2).flatten(2), x)
        return torch.as_tensor(self.output(functional.gelu(self.intermediate["dense"](x)), x))


class _Residual(nn.Module):
    """A linear layer, added to what went around it, and normed."""

    def __init__(self, width: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(width, hidden)
        self.LayerNorm = nn.LayerNorm(hidden, eps)

    def forward(self, x: Tensor, around: Tensor) -> Tensor:
        return torch.as_tensor(self.LayerNorm(self.dense(x) + around))
