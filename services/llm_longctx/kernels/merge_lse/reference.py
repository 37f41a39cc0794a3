"""The oracle of `merge`: one softmax over everything, in float64."""

import torch
from torch import Tensor


def softmax_of_all(logits: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [..., n] (−inf hides) and values [..., n, d] → (out [..., d], lse [...]) float64; nothing seen is zero."""
    logits, values = logits.double(), values.double()
    lse = torch.logsumexp(logits, -1)
    weights = torch.nan_to_num(torch.softmax(logits, -1), nan=0.0)
    return (weights[..., None, :] @ values)[..., 0, :], lse
