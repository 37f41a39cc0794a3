"""Last-query scores by the C++ kernel next to this file, float32 or bfloat16 on a CPU."""

import torch
from torch import Tensor

from services.llm_longctx.kernels.native import bindings


def last_query_scores(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """See `last_query_scores`; the sums are float32."""
    q, k = (x if x.stride(2) == 1 else x.contiguous() for x in (q, k))
    (H, b, d), (G, N) = q.shape, k.shape[:2]
    keys, distances = q.new_empty(2, H, N, dtype=torch.float32)
    bindings.last_query_scores(q, k, (*q.stride()[:2], *k.stride()[:2]), keys, distances, (H, G, b, N, d))
    return keys, distances
