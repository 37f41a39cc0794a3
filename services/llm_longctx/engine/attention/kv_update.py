"""KV updates: applies what a method decided about the cache, entries kept per head and copies in compact runs.

Refuses updates that a method has no right to. Knows nothing about why.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from services.llm_longctx.engine.kv_manager import PagedState
from services.llm_longctx.kv_cache import Entries
from services.llm_longctx.methods.core.hook_results import CacheUpdate, RetentionPolicy


def apply_retention(
    s: PagedState, layer: int, update: CacheUpdate, held: Mapping[int, Entries], length: int
) -> set[int]:
    """Cut the heads of a layer that the update names; returns their numbers.

    Args:
        s: The sequence.
        layer: Which layer.
        update: The method's decision.
        held: Entries of the heads now, new ones included.
        length: Tokens that were read.

    Raises:
        ValueError: A head that the method said keeps its whole history.
    """
    for head, retention in update.retain.items():
        if s.policy.full[layer, head]:
            raise ValueError(f"{s.policy.layers[layer].name} cuts head {head} of layer {layer}, which it said is full")
        entries, absorbed = _select_entries(held[head], retention)
        s.cache.keep(
            layer, head, entries, sink=retention.sink, slide=retention.slide, spare=max(s.max_length - length, 0),
            absorbed=absorbed, weighted=retention.weighted,
        )  # fmt: skip
    return set(update.retain)


def apply_compact_copies(s: PagedState, layer: int, update: CacheUpdate) -> None:
    """Copy the entries of a layer that the update names into compact runs."""
    for head, positions in update.compact.items():
        s.cache.copy_compact(layer, head, positions, spare=s.cache.pool.page)


def _select_entries(held: Entries, retention: RetentionPolicy) -> tuple[Entries, int | None]:
    """Kept entries, a virtual one last, and the number of entries behind that one where it will absorb more."""
    if retention.positions is not None:
        kept = torch.isin(held.positions, retention.positions)
        if retention.virtual is None:
            kept |= held.positions < 0
        held = held.take(kept.nonzero()[:, 0])
    if retention.virtual is None and not retention.absorb:
        return held, None
    real = held.take((held.positions >= 0).nonzero()[:, 0]) if retention.virtual is not None else held
    if retention.virtual is None:
        if bool((held.positions < 0).any()):
            return held, None
        # Nothing left yet: an entry that nobody sees waits for the first that leaves.
        nothing = torch.zeros_like(held.k[:1])
        return real.weigh().join(nothing, nothing, _virtual_position(real), -torch.inf), 0
    virtual = retention.virtual
    k, v = virtual.k[None].to(real.k.dtype), virtual.v[None].to(real.v.dtype)
    # A weight of 0 counts, too: the slot will get others.
    joined = real.weigh().join(k, v, _virtual_position(real), virtual.log_weight)
    return joined, virtual.count if retention.absorb else None


def _virtual_position(like: Entries) -> Tensor:
    """The position of a virtual entry [1]."""
    return torch.full((1,), -1, dtype=torch.int64, device=like.k.device)
