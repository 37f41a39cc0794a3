"""The oracle of ragged decode: one softmax per problem, float64."""

from collections.abc import Sequence

import torch
from torch import Tensor

from services.llm_longctx.kernels.merge_lse.reference import softmax_of_all


def decode(
    q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], log_weights: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor]:
    """See `decode`; out [R,G,d] and lse [R,G], both float64."""
    out, lse = q.new_zeros(q.shape, dtype=torch.float64), q.new_zeros(q.shape[:2], dtype=torch.float64)
    for r, (k, v, weights) in enumerate(zip(keys, values, log_weights, strict=True)):
        logits = q[r].double() @ k.double().T * q.shape[-1] ** -0.5
        if weights is not None:
            logits = logits + weights.double()
        out[r], lse[r] = softmax_of_all(logits, v.double().expand(q.shape[1], *v.shape))
    return out, lse
