"""Last-query scores in plain torch, through the whole map: float32 or wider, on any device."""

import torch
from torch import Tensor


def last_query_scores(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """See `last_query_scores`."""
    pattern = _softmax(q.to(torch.promote_types(q.dtype, torch.float32)), k)
    return pattern.sum(1), _diagonals(pattern)


def _softmax(q: Tensor, k: Tensor) -> Tensor:
    """Causal softmax rows of the last queries: [H,b,N] in q's dtype."""
    (H, b, d), (G, N) = q.shape, k.shape[:2]
    logits: Tensor = (q.reshape(G, -1, d) @ k.to(q.dtype).mT).view(H, b, N) * d**-0.5
    hidden = torch.ones(b, b, dtype=torch.bool, device=q.device).triu(1)
    logits[..., N - b :].masked_fill_(hidden, float("-inf"))
    return logits.softmax(-1)


def _diagonals(pattern: Tensor) -> Tensor:
    """Sums over pairs of one distance: rows of the last b positions [H,b,N] → [H,N], by query − key position."""
    H, b, N = pattern.shape
    # Row i, shifted right by i in a buffer one wider than a row, brings equal distances under each other.
    buffer = pattern.new_zeros(H, b * (N + b))
    skewed = buffer.as_strided((H, b, N), (buffer.stride(0), N + b + 1, 1))
    skewed.copy_(pattern.flip(-1))
    return buffer.view(H, b, N + b).sum(1)[:, b - 1 : b - 1 + N]
