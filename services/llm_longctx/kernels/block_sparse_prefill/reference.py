"""The oracle of block-sparse prefill: the whole mask over tokens, one softmax, float64."""

import torch
from torch import Tensor

from services.llm_longctx.kernels.block_csr import BlockCsr


def token_mask(blocks: BlockCsr, queries: int, keys: int) -> Tensor:
    """Keys that each query sees, bool [h, queries, keys]; the queries are the last ones of the keys' sequence."""
    rows = torch.arange(keys - queries, keys)
    columns = torch.arange(keys)
    kept = blocks.mask(-(-keys // blocks.key_block))
    seen = kept[:, rows // blocks.block - blocks.first][:, :, columns // blocks.key_block]
    return seen & (columns <= rows[:, None])


def prefill(q: Tensor, k: Tensor, v: Tensor, blocks: BlockCsr) -> tuple[Tensor, Tensor]:
    """See `block_sparse_prefill`; q [Hq,T,d], k and v [Hkv,N,d] → out [Hq,T,d], lse [Hq,T], both float64."""
    Hq, T, d = q.shape
    G = Hq // k.shape[0]
    mask = token_mask(blocks, T, k.shape[1]).to(q.device).repeat_interleave(Hq // blocks.heads, 0)
    keys, values = k.double().repeat_interleave(G, 0), v.double().repeat_interleave(G, 0)
    scores = (q.double() @ keys.transpose(1, 2) * d**-0.5).masked_fill(~mask, -torch.inf)
    return torch.nan_to_num(scores.softmax(-1), nan=0.0) @ values, scores.logsumexp(-1)
