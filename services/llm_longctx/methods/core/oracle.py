"""Reference attention under any mask, in float64; the oracles of methods end in it. Obvious rather than fast."""

import torch
from torch import Tensor


def causal_mask(tokens: int) -> Tensor:
    """The causal triangle, bool [T,T]."""
    return torch.ones(tokens, tokens, dtype=torch.bool).tril()


def repeat_kv(x: Tensor, heads: int) -> Tensor:
    """Keys or values [G,n,d] as each of `heads` query heads reads them, float64 [H,n,d]."""
    return x.double().repeat_interleave(heads // x.shape[0], 0)


def attention_weights(q: Tensor, k: Tensor, mask: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """Softmax rows of q [H,T,d] over k [G,S,d] where `mask` [T,S] or [H,T,S] allows; a row that sees nothing is 0."""
    logits = q.double() @ repeat_kv(k, q.shape[0]).mT * q.shape[-1] ** -0.5 + bias
    return torch.nan_to_num(logits.masked_fill(~mask, float("-inf")).softmax(-1), nan=0.0)


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Mixed values [H,T,d] in float64."""
    return attention_weights(q, k, mask) @ repeat_kv(v, q.shape[0])


def blocks_to_tokens(kept: Tensor, block: int, key_block: int, tokens: int) -> Tensor:
    """Kept blocks [..., rows, columns] as visible pairs [..., T, T], token-causal."""
    wide = kept.repeat_interleave(block, -2)[..., :tokens, :].repeat_interleave(key_block, -1)[..., :tokens]
    return wide & causal_mask(tokens)
