"""Carries out a method's orders about memory: what a head keeps, and what is copied into compact runs.

Refuses orders that a method has no right to. Knows nothing about why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from services.llm_longctx.kv_cache import Entries
from services.llm_longctx.methods.core.hook_results import CacheUpdate, RetentionPolicy

if TYPE_CHECKING:
    from services.llm_longctx.engine.open_sequence import OpenSequence

__all__ = ["copied", "retained"]


def retained(s: OpenSequence, layer: int, outcome: CacheUpdate, held: Mapping[int, Entries], length: int) -> set[int]:
    """Cut the heads that are named; those that were, by number. `held` is what they hold now, new entries included.

    Raises:
        ValueError: A head that the method said keeps its whole history.
    """
    for head, order in outcome.retain.items():
        if s.policy.full[layer, head]:
            message = f"{s.policy.layers[layer].name} cuts head {head} of layer {layer}, which it said is full"
            raise ValueError(message)
        entries, absorbed = _chosen(held[head], order)
        s.memory.keep(
            layer,
            head,
            entries,
            sink=order.sink,
            slide=order.slide,
            spare=max(s.room - length, 0),
            absorbed=absorbed,
            weighted=order.weighted,
        )
    return set(outcome.retain)


def copied(s: OpenSequence, layer: int, outcome: CacheUpdate) -> None:
    """Make the compact copies that are ordered."""
    for head, positions in outcome.compact.items():
        s.memory.copy_compact(layer, head, positions, spare=s.memory.pool.page)


def _chosen(held: Entries, order: RetentionPolicy) -> tuple[Entries, int | None]:
    """What is kept, a virtual entry last, and how many entries that one stands for where it will absorb more."""
    if order.positions is not None:
        kept = torch.isin(held.positions, order.positions)
        if order.virtual is None:
            kept |= held.positions < 0
        held = held.take(kept.nonzero()[:, 0])
    if order.virtual is None and not order.absorb:
        return held, None
    real = held.take((held.positions >= 0).nonzero()[:, 0]) if order.virtual is not None else held
    if order.virtual is None:
        if bool((held.positions < 0).any()):
            return held, None
        # Nothing left yet: an entry that nobody sees waits for the first that leaves.
        return _with(real, torch.zeros_like(held.k[:1]), torch.zeros_like(held.v[:1]), -torch.inf), 0
    virtual = order.virtual
    joined = _with(real, virtual.k[None].to(real.k.dtype), virtual.v[None].to(real.v.dtype), virtual.log_weight)
    return joined, virtual.count if order.absorb else None


def _with(held: Entries, k: torch.Tensor, v: torch.Tensor, log_weight: float) -> Entries:
    wide = torch.float64 if held.k.dtype == torch.float64 else torch.float32
    weights = held.log_weight if held.log_weight is not None else torch.zeros(len(held.k), dtype=wide)
    return Entries(
        torch.cat((held.k, k)),
        torch.cat((held.v, v)),
        torch.cat((held.positions, torch.tensor([-1]))),
        torch.cat((weights, torch.tensor([log_weight], dtype=wide))),
    )
