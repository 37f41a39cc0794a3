"""DHSA's second generation: which key blocks of fixed size each block of queries reads, per query head.

Each rule has the release's form; `topk` also has a causal one that is safe to serve. Knows tensors only.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from services.llm_longctx.kernels import last_query_scores
from services.llm_longctx.methods.core.block_means import block_means


@dataclass(frozen=True, slots=True)
class BlockGrid:
    """Blocks of a prompt of which the last T of N tokens are queried.

    Attributes:
        tokens: N.
        first: Number of the first query block.
        block: Tokens of a query block.
        key_block: Tokens of a key block.
        density: Share of key blocks that a row keeps.
        last: Whether the prompt ends here; its last row is then dense in two of the rules.
        device: Where the queries lie.
    """

    tokens: int
    first: int
    block: int
    key_block: int
    density: float
    last: bool = True
    device: torch.device | str = "cpu"

    @property
    def columns(self) -> int:
        """Key blocks."""
        return -(-self.tokens // self.key_block)

    @property
    def rows(self) -> Tensor:
        """Numbers of the query blocks."""
        return torch.arange(self.first, -(-self.tokens // self.block), device=self.device)

    @property
    def budget(self) -> int:
        """T of the rules: key blocks per row."""
        return max(1, int(self.density * self.columns))

    @property
    def recent(self) -> Tensor:
        """Last causal key block of each row."""
        return (((self.rows + 1) * self.block - 1) // self.key_block).clamp(max=self.columns - 1)

    @property
    def start(self) -> Tensor:
        """Key block in which each row begins."""
        return self.rows * self.block // self.key_block


def select_blocks(variant: str, q: Tensor, k: Tensor, grid: BlockGrid, *, causal_safe: bool) -> Tensor:
    """Kept blocks [H,rows,columns]: q [H,T,d] of the last T positions, k [G,N,d]; float32 or wider."""
    column, recent, start = torch.arange(grid.columns, device=grid.device), grid.recent[:, None], grid.start[:, None]
    means = block_means(k, grid.key_block).repeat_interleave(q.shape[0] // k.shape[0], 0)
    scores = block_means(q, grid.block, grid.tokens - q.shape[1]) @ means.mT
    if variant == "topk":
        if not causal_safe:
            return _top(scores, torch.full_like(recent, grid.budget))
        band = (column >= start) & (column <= recent)
        rest = (grid.budget - band.sum(-1, keepdim=True)).clamp(min=0)
        return band | (_top(scores.masked_fill(column >= start, -torch.inf), rest) & (column < start))
    middle = (column > 0) & (column < recent)
    dense = recent + 1 <= grid.budget
    forced = (column == 0) | (column == recent)
    if variant == "vsb":
        forced = (column == 0) | ((column >= start) & (column <= recent))
        scores = _vsb(scores * q.shape[-1] ** -0.5, grid)
    elif variant == "vs":
        scores = _vs(q, k, grid)
    if variant != "a":
        dense = dense | (grid.rows[:, None] < -(-grid.budget * grid.key_block // grid.block))
        if grid.last:
            dense = dense | (grid.rows[:, None] == grid.rows[-1])
    counts = torch.minimum((grid.budget - forced.sum(-1, keepdim=True)).clamp(min=0), (recent - 1).clamp(min=0))
    chosen = _top(scores.masked_fill(~middle, -torch.inf), counts) & middle
    return torch.where(dense, column <= recent, forced | chosen)


def _top(scores: Tensor, counts: Tensor) -> Tensor:
    """The `counts` [rows,1] largest of each row of scores [H,rows,n]; ties go to the lower index."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(scores.shape[-1], device=scores.device).expand_as(order)
    return torch.zeros_like(order, dtype=torch.bool).scatter(-1, order, ranks < counts)


def _vs(q: Tensor, k: Tensor, grid: BlockGrid) -> Tensor:
    """Token lines: what the strongest columns and diagonals of a probe put into each block, [H,rows,columns]."""
    by_key, by_distance = last_query_scores(q[:, -min(grid.block, q.shape[1]) :], k)
    N, B, S = grid.tokens, grid.block, grid.key_block
    budget = min(N, grid.budget * S)
    columns, weights = _best(by_key, int(budget * 0.5))
    scores = weights.new_zeros(len(q), grid.columns).index_put_(
        (torch.arange(len(q), device=q.device)[:, None], columns // S), weights, accumulate=True
    )
    distances, weights = _best(by_distance, budget - int(budget * 0.5))
    begin = grid.rows[:, None] * B - distances[:, None]
    low, high = begin.clamp(min=0) // S, torch.minimum((begin + B - 1).clamp(min=0) // S, grid.recent[:, None])
    high = torch.where(begin + B - 1 < 0, -1, high)
    lines = weights.new_zeros(len(q), len(grid.rows), grid.columns)
    for step in range(B // S + 2):
        at = low + step
        lines.scatter_add_(2, at.clamp(max=grid.columns - 1), weights[:, None].expand_as(at) * (at <= high))
    return scores[:, None] + lines


def _vsb(scores: Tensor, grid: BlockGrid) -> Tensor:
    """Block lines: the last row's strongest blocks as columns and as distances, raw and perhaps negative."""
    last = scores[:, -1]
    half = int(grid.budget * 0.5)
    columns, weights = _best(last, half)
    lines = torch.zeros_like(scores) + torch.zeros_like(last).scatter_add_(1, columns, weights)[:, None]
    at_columns, weights = _best(last, grid.budget - half)
    distances = (grid.columns - 1 - at_columns)[:, None]
    low, high = grid.start[:, None] - distances, grid.recent[:, None] - distances
    for step in range(int((grid.recent - grid.start).max()) + 1):
        at = low + step
        inside = (at > 0) & (at < grid.recent[:, None]) & (at <= high)
        lines.scatter_add_(2, at.clamp(0, grid.columns - 1), weights[:, None].expand_as(at) * inside)
    return lines


def _best(mass: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Indices and values of the `count` largest of [H,n]; ties go to the lower index."""
    ordered, index = mass.sort(dim=-1, descending=True, stable=True)
    return index[:, :count], ordered[:, :count]
