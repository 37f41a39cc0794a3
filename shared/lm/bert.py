"""BERT encoder (Devlin et al., 2019, arXiv:1810.04805), as the family of sentence embedders uses it: post-norm layers.

MPNet (Song et al., 2020, arXiv:2004.09297) is one whose attention also adds a number by the distance of two tokens.
Knows tensors and the names of official files; knows no text and no pooling.
"""

import math
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
        first_position: Row of the table of positions that the first token takes.
        token_types: Rows of the table of segments, of which the first is used; 0: none.
        distance_buckets: Groups of distances between tokens, each with a bias for every head; 0: none.
    """

    vocab: int = 30522
    hidden: int = 384
    layers: int = 6
    heads: int = 12
    ffn: int = 1536
    positions: int = 512
    eps: float = 1e-12
    first_position: int = 0
    token_types: int = 2
    distance_buckets: int = 0

    @classmethod
    def from_official(cls, facts: Mapping[str, Any]) -> Self:
        """Read the fields of an official `config.json`."""
        is_mpnet = facts.get("model_type") == "mpnet"
        return cls(
            vocab=facts["vocab_size"],
            hidden=facts["hidden_size"],
            layers=facts["num_hidden_layers"],
            heads=facts["num_attention_heads"],
            ffn=facts["intermediate_size"],
            positions=facts["max_position_embeddings"],
            eps=facts.get("layer_norm_eps", 1e-12),
            first_position=facts["pad_token_id"] + 1 if is_mpnet else 0,
            token_types=0 if is_mpnet else 2,
            distance_buckets=facts["relative_attention_num_buckets"] if is_mpnet else 0,
        )

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest sequence."""
        return self.positions - self.first_position


class BertEncoder(nn.Module):
    """Token, position and segment embeddings, and a stack of post-norm layers. Names are those of official files."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = _Embeddings(config)
        layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        self.encoder = nn.ModuleDict({"layer": layers})
        if config.distance_buckets:
            self.encoder["relative_attention_bias"] = nn.Embedding(config.distance_buckets, config.heads)
        self._layers = list(layers)  # a list, which hides them from `state_dict`: they are there already

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Hidden states [b,t,d] of ids [b,t]; tokens where mask [b,t] is False are seen by none."""
        x = self.embeddings(ids)
        visible = mask[:, None, None, :]
        if self.config.distance_buckets:
            buckets = group_distances(ids.shape[1], self.config.distance_buckets).to(ids.device)
            bias = self.encoder["relative_attention_bias"](buckets).permute(2, 0, 1)[None]
            visible = bias.masked_fill(~visible, -math.inf)
        for layer in self._layers:
            x = layer(x, visible)
        return torch.as_tensor(x)


def group_distances(tokens: int, buckets: int, longest: int = 128) -> Tensor:
    """Bucket [q,k] of each pair of tokens: half of the buckets are for keys before the query, half for those after.

    Half of each half holds single distances; the others grow as powers, up to `longest` and all beyond it.
    """
    places = torch.arange(tokens, device="cpu")
    distance = places[None, :] - places[:, None]
    half = buckets // 2
    exact = half // 2
    far = distance.abs()
    powers = torch.log(far.clamp(min=1) / exact) / math.log(longest / exact) * (half - exact)
    grouped = torch.where(far < exact, far, (exact + powers.long()).clamp(max=half - 1))
    return grouped + half * (distance > 0)


class _Embeddings(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab, config.hidden)
        self.position_embeddings = nn.Embedding(config.positions, config.hidden)
        self.token_type_embeddings = nn.Embedding(config.token_types, config.hidden) if config.token_types else None
        self.first_position = config.first_position
        self.LayerNorm = nn.LayerNorm(config.hidden, config.eps)

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device) + self.first_position
        x = self.word_embeddings(ids) + self.position_embeddings(places)
        if self.token_type_embeddings is not None:
            x = x + self.token_type_embeddings.weight[0]
        return torch.as_tensor(self.LayerNorm(x))


class _Layer(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        d = config.hidden
        self.heads = config.heads
        own = nn.ModuleDict({name: nn.Linear(d, d) for name in ("query", "key", "value")})
        self.attention = nn.ModuleDict({"self": own, "output": _Residual(d, d, config.eps)})
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
