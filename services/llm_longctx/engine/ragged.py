"""One decode step of several sequences at once: linear layers see a batch, attention sees each cache by itself.

The dense form of the decoder's seam for rows of unequal lengths. Knows nothing about sampling or scheduling.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shared.lm.attention import sdpa
from shared.lm.cache import KVCache
from shared.lm.decoder import Decoder

__all__ = ["decode"]


def decode(model: Decoder, caches: Sequence[KVCache], tokens: Sequence[int]) -> Tensor:
    """Feed one token to each sequence; its cache grows by one. Logits [R,V]."""
    device = model.output_matrix.device
    positions = torch.tensor([[cache.length] for cache in caches], device=device)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, _offset: int) -> Tensor:
        rows = [slice(r, r + 1) for r in range(len(caches))]
        mixed = [
            sdpa(q[r], *cache.write(layer, k[r], v[r], cache.length)) for r, cache in zip(rows, caches, strict=True)
        ]
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)

    ids = torch.tensor([[token] for token in tokens], device=device)
    logits: Tensor = model(ids, attend=attend, positions=positions)[:, 0]
    for cache in caches:
        cache.length += 1
    return logits
