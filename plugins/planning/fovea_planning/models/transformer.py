"""The classic transformer's layers, post-norm, in the layout of torch's own, and exportable at any batch and length.

Knows keys and maths (Vaswani et al., 2017). `torch.nn` has the same layers; its attention writes the sizes that it was
traced with into an ONNX graph, these do not.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TransformerEncoder(nn.Module):
    """Layers of self-attention over (b, t, d), without a final norm."""

    def __init__(self, width: int, layers: int, heads: int, feedforward: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_EncoderLayer(width, heads, feedforward, dropout) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """The tokens (b, t, d), each after seeing all."""
        for layer in self.layers:
            x = layer(x)
        return x


class TransformerDecoder(nn.Module):
    """Layers of causal self-attention, then attention to a memory; without a final norm."""

    def __init__(self, width: int, layers: int, heads: int, feedforward: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_DecoderLayer(width, heads, feedforward, dropout) for _ in range(layers))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """The tokens (b, t, d), each after seeing those before it and the memory (b, m, d)."""
        for layer in self.layers:
            x = layer(x, memory)
        return x


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor, memory: Tensor, *, causal: bool = False) -> Tensor:
        """Each of x (b, t, d) attends to the memory (b, m, d); causal: from places up to its own."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(given, weight, bias).reshape(*given.shape[:2], self.heads, -1).transpose(1, 2)
            for given, weight, bias in zip((x, memory, memory), weights, biases, strict=True)
        )
        scores = q @ k.transpose(2, 3) * q.shape[3] ** -0.5
        if causal:
            future = torch.ones(x.shape[1], memory.shape[1], dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(future, -torch.inf)
        shares = F.dropout(scores.softmax(3), self.dropout, self.training)
        mixed: Tensor = self.out_proj((shares @ v).transpose(1, 2).flatten(2))
        return mixed


class _EncoderLayer(nn.Module):
    def __init__(self, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = _Attention(width, heads, dropout)
        self.linear1, self.linear2 = nn.Linear(width, feedforward), nn.Linear(feedforward, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.dropout(self.self_attn(x, x)))
        widened = self.dropout(F.relu(self.linear1(x)))
        normed: Tensor = self.norm2(x + self.dropout(self.linear2(widened)))
        return normed


class _DecoderLayer(nn.Module):
    def __init__(self, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = _Attention(width, heads, dropout)
        self.multihead_attn = _Attention(width, heads, dropout)
        self.linear1, self.linear2 = nn.Linear(width, feedforward), nn.Linear(feedforward, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        x = self.norm1(x + self.dropout(self.self_attn(x, x, causal=True)))
        x = self.norm2(x + self.dropout(self.multihead_attn(x, memory)))
        widened = self.dropout(F.relu(self.linear1(x)))
        normed: Tensor = self.norm3(x + self.dropout(self.linear2(widened)))
        return normed
