"""Block means: queries or keys averaged over blocks of tokens. Knows positions, not methods."""

import torch
from torch import Tensor


def block_means(x: Tensor, block: int, offset: int = 0) -> Tensor:
    """Means over blocks counted from position 0 of x [h,T,d], whose first row has position `offset`: [h,blocks,d].

    They are float32 or wider; a partial block's is over what it has.
    """
    wide, T = torch.promote_types(x.dtype, torch.float32), x.shape[1]
    begin = min(-offset % block, T)
    end = begin + (T - begin) // block * block
    parts = [x[:, begin:end].reshape(len(x), -1, block, x.shape[2]).mean(2, dtype=wide)]
    if begin:
        parts.insert(0, x[:, :begin].mean(1, keepdim=True, dtype=wide))
    if end < T:
        parts.append(x[:, end:].mean(1, keepdim=True, dtype=wide))
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0]
