"""How many cache entries each head keeps, and which: budgets per layer, and competition within a head or a layer.

Higher scores stay; +inf protects. Equal scores: the newer entry stays, then that of the lower head. Knows scores and
positions, not what they were computed from.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

SafeguardRule = Literal["floor", "mix"]


def count_kept(tokens: int, ratio: float, budget: int | None) -> int:
    """Entries that a head keeps of so many tokens; 1 or more where there are any."""
    # Without the small addend 100 tokens at a ratio of 0.1 would keep 9 or 10, as the floating point happens to fall.
    wanted = int(ratio * tokens + 1e-9) if budget is None else budget
    return min(tokens, max(wanted, 1))


def pyramid_counts(tokens: int, layers: int, share: float, window: int, beta: float) -> list[int]:
    """Entries that a head of each layer keeps: a line from many in the lowest layer to few in the highest.

    Source: PyramidKV (2024), as released. Where the line leaves what is possible every layer keeps the same.

    Args:
        tokens: Tokens so far.
        layers: Layers of the model.
        share: Entries kept per head on average; need not be whole.
        window: Last entries that every layer keeps.
        beta: How much fewer than the average the highest layer keeps.
    """
    low = share / beta
    high = 2 * share - low
    if high >= tokens - window:
        high = tokens - window
        low = 2 * share - high
    if not tokens >= high >= low >= window:
        return [min(tokens, max(round(share), 1))] * layers
    step = (high - low) / (layers - 1) if layers > 1 else 0.0
    return [min(tokens, max(round(high - layer * step), 1)) for layer in range(layers)]


def keep_per_head(scores: Sequence[Tensor], count: int) -> list[Tensor]:
    """Each head keeps its best `count` entries, and all that are protected.

    Args:
        scores: Of each head's entries [n], in order of position.
        count: Entries per head.

    Returns:
        Entries to keep, per head bool [n].
    """
    return [_best(row, max(count, int(row.isposinf().sum()))) for row in scores]


def keep_per_layer(
    scores: Sequence[Tensor],
    positions: Sequence[Tensor],
    count: int,
    safeguard: float,
    rule: SafeguardRule,
    total: int | None = None,
) -> list[Tensor]:
    """The heads of a layer, or of a model, keep `count` entries on average, and more where they have the better ones.

    Source: Ada-KV (2024); `floor` as in the kvpress collection, `mix` as the authors do.

    Args:
        scores: Of each head's entries [n], in order of position.
        positions: Of each head's entries [n], ascending.
        count: Entries per head on average.
        safeguard: Share of the even budget that each head has for itself.
        rule: `floor`: each head keeps that share first. `mix`: its number is a mean of the even one and the adaptive.
        total: Entries of all heads together, where they are not `count` times their number.

    Returns:
        Entries to keep, per head bool [n].
    """
    own = int(count * safeguard)
    total = count * len(scores) if total is None else total
    if rule == "mix":
        won = [int(kept.sum()) for kept in _best_of_all(scores, positions, total)]
        return [keep_per_head([row], n)[0] for row, n in zip(scores, _mix(won, total, own), strict=True)]
    least = max(own, 1) if safeguard > 0 else 0
    kept = keep_per_head(scores, least)
    left = max(total - sum(int(one.sum()) for one in kept), 0)
    rest = [row.masked_fill(one, -torch.inf) for row, one in zip(scores, kept, strict=True)]
    more = _best_of_all(rest, positions, left, [~one for one in kept])
    return [one | other for one, other in zip(kept, more, strict=True)]


def keep_critical(
    scores: Sequence[Tensor], norms: Sequence[Tensor], counts: Sequence[int], first: Sequence[int], epsilon: float
) -> list[Tensor]:
    """Each head keeps its best entries by score first, and fills up by (score + epsilon) times the value's norm.

    Source: CriticalKV (2025). Protected entries are among the first.

    Args:
        scores: Of each head's entries [n], in order of position.
        norms: Norms of their values behind the output matrix [n].
        counts: Entries per head.
        first: How many of them by score alone.
        epsilon: Added to scores in the second stage.

    Returns:
        Entries to keep, per head bool [n].
    """
    stays = []
    for row, norm, count, own in zip(scores, norms, counts, first, strict=True):
        kept = keep_per_head([row], own)[0]
        rest = ((row + epsilon) * norm).masked_fill(kept, torch.inf)
        stays.append(_best(rest, max(count, int(kept.sum()))))
    return stays


def _mix(won: Sequence[int], total: int, own: int) -> list[int]:
    """Entries per head: `own`, and a share of the rest in proportion to what each won; leftovers by fraction."""
    rest = total - own * len(won)
    counts = [own + rest * n // total if total else 0 for n in won]
    fractions = sorted(range(len(won)), key=lambda g: (-(rest * won[g] % max(total, 1)), g))
    for g in fractions[: max(own * len(won) + (rest * sum(won) // total if total else 0) - sum(counts), 0)]:
        counts[g] += 1
    return counts


def _best(scores: Tensor, count: int) -> Tensor:
    """The `count` largest of [n], the later of equal ones."""
    order = len(scores) - 1 - scores.flip(0).argsort(descending=True, stable=True)
    return torch.zeros_like(scores, dtype=torch.bool).index_fill_(0, order[:count], value=True)


def _best_of_all(
    scores: Sequence[Tensor], positions: Sequence[Tensor], count: int, allowed: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """The `count` largest of several heads' entries; equal ones by position, newest first, then by head."""
    flat, at = torch.cat(tuple(scores)), torch.cat(tuple(positions))
    order = at.argsort(descending=True, stable=True)
    order = order[flat[order].argsort(descending=True, stable=True)]
    if allowed is not None:
        order = order[torch.cat(tuple(allowed))[order]]
    kept = torch.zeros_like(flat, dtype=torch.bool).index_fill_(0, order[:count], value=True)
    return list(torch.split(kept, [len(row) for row in scores]))
