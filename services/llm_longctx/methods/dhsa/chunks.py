"""DHSA's first generation: where variable chunks begin, and which tokens each block of queries reads.

Selections are shared by all heads. Knows tensors; nothing about plans or engines.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from shared.lm.host_transfer import to_device


def mass_ratios(attention: Tensor, window: int = 4, eps: float = 1e-6, sliding_window: int | None = None) -> Tensor:
    """How unevenly later queries treat the two sides of each gap: [N] float64, 0 near both ends.

    Args:
        attention: Causal probabilities averaged over heads [N,N].
        window: w; for the gap after token i, the w keys up to it and the w keys behind it are weighed.
        eps: Added to both masses.
        sliding_window: At most so many query rows count, from i + w on.
    """
    N, w = len(attention), window
    device = attention.device
    image = torch.zeros(N + 1, N + 1, dtype=torch.float64, device=device)
    image[1:, 1:] = attention.double().cumsum(0).cumsum(1)
    ratios = torch.zeros(N, dtype=torch.float64, device=device)
    i = torch.arange(max(2 * w - 1, 0), max(N - 2 * w, 0), device=device)
    if not len(i):
        return ratios
    top = i + w
    bottom = torch.full_like(i, N) if sliding_window is None else (top + sliding_window).clamp(max=N)

    def mass(left: Tensor, right: Tensor) -> Tensor:
        return image[bottom, right] - image[top, right] - image[bottom, left] + image[top, left]

    past, future = mass(i - w + 1, i + 1), mass(i + 1, i + w + 1)
    ratios[i] = (torch.maximum(past, future) + eps) / (torch.minimum(past, future) + eps)
    return ratios


def select_boundaries(
    ratios: Tensor, theta: float = 1.1, limit: int = 1 << 30, nms: int = 8, instruction: int = 64
) -> list[int]:
    """Chunk borders from ratios (or a predictor's logits) [N]: the steepest gaps, none within `nms` of another.

    The instruction's begin is accepted first; candidates behind it are ignored; `limit` counts all that are accepted.
    """
    N = len(ratios)
    last = N - instruction
    accepted = [last]
    for i in ratios.argsort(dim=-1, descending=True, stable=True).tolist():
        if len(accepted) >= limit or not ratios[i] > theta:
            break
        if i <= last and all(abs(i - j) > nms for j in accepted):
            accepted.append(i)
    return sorted({0, N, *(i + 1 for i in accepted if 0 < i + 1 < N)})


def fixed_boundaries(tokens: int, chunk: int) -> list[int]:
    """Chunks of one length: what stands in where nobody gives boundaries and no predictor is there."""
    return [*range(0, tokens, chunk), tokens]


def select_tokens(
    q: Tensor,
    k: Tensor,
    boundaries: Sequence[int],
    *,
    begin: int,
    end: int,
    block: int,
    budget: int,
    local: int,
    sinks: int,
    normalised: bool,
) -> Tensor:
    """Tokens that each block of queries reads, ascending: [blocks, budget] (section 1, steps 2 to 6).

    Args:
        q: Head-averaged queries of positions begin … end-1 [t,d], float32 or wider.
        k: Head-averaged keys of all N positions [N,d].
        boundaries: Chunk borders, 0 and N included.
        begin: Position of the first query; blocks are counted from position 0.
        end: Position behind the last query.
        block: Queries of a block.
        budget: Tokens per block, padded with N-1 where fewer are allowed.
        local: Most recent allowed tokens, always in.
        sinks: First tokens, which overwrite the earliest ones chosen.
        normalised: Whether means are scaled by the square root of what they average (`mean_sqrt`).
    """
    N, first, device = len(k), begin // block, k.device
    rows = torch.arange(first, -(-end // block), device=device)
    borders = to_device(list(boundaries), device)
    lengths = borders[1:] - borders[:-1]
    chunk_of = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths, output_size=N)
    chunks = k.new_zeros(len(lengths), k.shape[1]).index_add_(0, chunk_of, k) / lengths[:, None]
    row_of = torch.arange(begin, end, device=device) // block - first
    queries = q.new_zeros(len(rows), q.shape[1]).index_add_(0, row_of, q) / block
    if normalised:
        chunks, queries = chunks * lengths[:, None].sqrt(), queries * row_of.bincount()[:, None].sqrt()
    scores = (queries @ chunks.T)[:, chunk_of]
    allowed = ((rows + 1) * block).clamp(max=N)
    at = torch.arange(N, device=device)
    recent = (at < allowed[:, None]) & (at >= allowed[:, None] - local)
    scores = scores.masked_fill(at >= allowed[:, None], -torch.inf).masked_fill(recent, torch.inf)
    order = scores.argsort(dim=-1, descending=True, stable=True)[:, :budget]
    order = torch.nn.functional.pad(order, (0, budget - order.shape[1]), value=N - 1)
    spare = torch.arange(budget, device=device) >= allowed[:, None]
    chosen = order.masked_fill(spare, N - 1).sort(-1).values
    count = min(sinks, budget)
    chosen[:, :count] = torch.minimum(torch.arange(count, device=device), allowed[:, None] - 1)
    return chosen.sort(-1).values
