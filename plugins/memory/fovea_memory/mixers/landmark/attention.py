"""Landmark attention: a token reads an earlier block only through the block's landmark (Mohtashami & Jaggi, 2023).

One more vocabulary entry, the landmark, closes every block of L ordinary tokens. A query gives its attention to the
tokens of its own block and to the landmarks of older ones; a landmark hands its share on to the tokens of its block,
in proportion to what the query thinks of them. Landmark keys are therefore an index, and retrieval a citation.

Knows scores and which keys are landmarks; knows nothing about networks, positions or caches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Empty = Literal["mask", "keep"]
"""Treatment of a landmark without tokens: not there, or (as released) a place where attention gets lost."""


def landmark_softmax(scores: Tensor, is_landmark: Tensor, empty: Empty = "mask") -> Tensor:
    """Causal landmark attention over any pattern of landmarks (section 3.1).

    Args:
        scores: Scaled logits [B,H,T,T].
        is_landmark: Which tokens are landmarks [B,T].
        empty: Landmarks right behind landmarks: `mask` them, or `keep` the released behaviour (rows sum to less).

    Returns:
        Weights [B,H,T,T], 0 for every landmark. Rows sum to 1, but for a row that sees nothing: it is all zeros.
    """
    T = scores.shape[-1]
    visible = torch.ones(T, T, dtype=torch.bool, device=scores.device).tril()
    closed = is_landmark.long()
    return grouped_softmax(scores, (closed.cumsum(-1) - closed)[:, None], is_landmark[:, None], visible, empty)


def grouped_softmax(scores: Tensor, blocks: Tensor, landmark: Tensor, visible: Tensor, empty: Empty = "mask") -> Tensor:
    """The same for any keys: a softmax over own tokens and older landmarks, times one inside each older block.

    Args:
        scores: Scaled logits [...,t,s].
        blocks: Block of each key [...,s]; a landmark belongs to the block that it closes.
        landmark: Which keys are landmarks [...,s].
        visible: Which keys a query may see [...,t,s]; its own block is the last one that it sees.
        empty: As in `landmark_softmax`.

    Returns:
        Weights [...,t,s].
    """
    blocks, landmark = blocks[..., None, :], landmark[..., None, :]
    own = torch.where(visible, blocks, -1).amax(-1, keepdim=True)
    mine = visible & ~landmark & (blocks == own)
    older = (visible & ~landmark & (blocks < own)).expand(scores.shape)
    gates = (visible & landmark & (blocks < own)).expand(scores.shape)
    group = blocks.expand(scores.shape)
    count = int(blocks.max()) + 1 if blocks.numel() else 0
    exps, total = _group_exp(scores.masked_fill(~older, -torch.inf), group, count)
    if empty == "mask":
        gates = gates & (total.gather(-1, group) > 0)
    top = _softmax(scores, mine | gates)
    handed = top.new_zeros(total.shape).scatter_add(-1, group, top.masked_fill(~gates, 0))
    inner = exps / total.gather(-1, group).clamp(min=torch.finfo(scores.dtype).tiny)
    return torch.where(mine, top, inner * handed.gather(-1, group))


def regular_softmax(scores: Tensor, block: int, most: int | None = None) -> Tensor:
    """Landmark attention where every (block + 1)-th token is a landmark: the same numbers without a scatter.

    Args:
        scores: Scaled logits [...,T,T], causal.
        block: Ordinary tokens of a block.
        most: Older blocks that a query may read, those with the highest landmarks; None is all.

    Returns:
        Weights [...,T,T].
    """
    T, size = scores.shape[-1], block + 1
    n = -(-T // size)
    x = torch.nn.functional.pad(scores, (0, n * size - T)).view(*scores.shape[:-1], n, size)
    query = torch.arange(T, device=scores.device)
    home, within = query // size, query % size
    older = torch.arange(n, device=scores.device) < home[:, None]
    if most is not None and most < n:
        gates = x[..., block].detach().masked_fill(~older, -torch.inf)
        older = older & (gates >= gates.topk(most, -1).values[..., -1:])
    inside = torch.arange(block, device=scores.device) <= within[:, None]
    at_home = home[:, None, None].expand(*x.shape[:-2], 1, block)
    own = x[..., :block].gather(-2, at_home).squeeze(-2)
    top = _softmax(torch.cat((own, x[..., block]), -1), torch.cat((inside.expand(*older.shape[:-1], -1), older), -1))
    weights = x[..., :block].softmax(-1) * (top[..., block:] * older)[..., None]
    weights = weights.scatter_add(-2, at_home, top[..., None, :block])
    return torch.nn.functional.pad(weights, (0, 1)).flatten(-2)[..., :T]


def _group_exp(x: Tensor, group: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """exp(x - the maximum of its group) [...,s], and its sum by group [...,count]; -inf is nobody.

    The maximum is the group's and not the row's: in float16 a far block would else vanish before it is weighed.
    """
    shape = (*x.shape[:-1], count)
    peak = x.new_full(shape, -torch.inf).scatter_reduce(-1, group, x.detach(), "amax")
    exps = (x - peak.masked_fill(peak.isneginf(), 0).gather(-1, group)).exp()
    return exps, x.new_zeros(shape).scatter_add(-1, group, exps)


def _softmax(x: Tensor, among: Tensor) -> Tensor:
    """Softmax over the marked entries; a row without any is all zeros, also in its gradient."""
    x = x.masked_fill(~among, -torch.inf)
    peak = x.detach().amax(-1, keepdim=True)
    exps = (x - peak.masked_fill(peak.isneginf(), 0)).exp()
    return exps / exps.sum(-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)


@dataclass(frozen=True, slots=True)
class RetrievedBlock:
    """A citation: a block that the model retrieved.

    Attributes:
        block: Its number in the stream, from 0.
        start: First ordinary token.
        end: The one behind the last.
        weight: Its share of all retrieval votes (layers × heads × tokens × k).
        hits: Its votes.
    """

    block: int
    start: int
    end: int
    weight: float
    hits: int


def citations(blocks: Sequence[Tensor | None], block: int, top: int = 5) -> list[RetrievedBlock]:
    """Which blocks were retrieved most, by all heads, tokens and layers together.

    Args:
        blocks: Per layer (or per step and layer) the chosen blocks [B,H,t,k], None where nothing was stored.
        block: Ordinary tokens of a block.
        top: Most citations.

    Returns:
        Most hits first, ties by block.
    """
    votes = [chosen.flatten() for chosen in blocks if chosen is not None]
    if not votes:
        return []
    numbers, hits = torch.unique(torch.cat(votes), return_counts=True)
    whole = int(hits.sum())
    ranked = sorted(zip(numbers.tolist(), hits.tolist(), strict=True), key=lambda pair: (-pair[1], pair[0]))
    return [RetrievedBlock(j, j * block, (j + 1) * block, count / whole, count) for j, count in ranked[:top]]
