"""The oracle of eviction: what every row of a prompt and its answer sees, cut by cut. Knows no particular score."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Protocol

import torch
from torch import Tensor

from services.llm_longctx.methods.core.hook_inputs import CacheView

__all__ = ["CutRules", "replay"]


class CutRules(Protocol):
    """What decides about cuts; an `EvictionMethod` does."""

    @property
    def prefill(self) -> str:
        """When the prompt is cut."""

    @property
    def every(self) -> int | None:
        """Decode steps from cut to cut."""

    @property
    def recent(self) -> int:
        """Queries remembered while decoding."""

    @property
    def query_window(self) -> int:
        """Queries that scores need."""

    def counts(self, tokens: int, layers: int) -> list[int]:
        """Entries per head and layer after a cut."""

    def keep_positions(
        self, heads: Sequence[CacheView], q: Tensor, tokens: int, layer: int, count: int
    ) -> list[Tensor]:
        """Positions that stay of each head."""


def replay(
    rules: CutRules,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    chunks: Sequence[int],
    steps: int,
    layer: int,
    layers: int,
) -> tuple[Tensor, list[Tensor]]:
    """Read a prompt in chunks and take steps behind it, in one layer whose heads are all cut.

    Args:
        rules: What scores and when it cuts.
        q: Queries of prompt and steps [H,N+T,d].
        k: Keys [G,N+T,d].
        v: Values [G,N+T,d].
        chunks: Lengths of the prompt's chunks; they add up to N.
        steps: T.
        layer: Which layer.
        layers: Of how many.

    Returns:
        Visible pairs [H,N+T,N+T], and the positions held of the prompt when it is read, per key/value head.
    """
    (H, total, _), G, at = q.shape, k.shape[0], torch.arange(q.shape[1])
    prompt, mask = total - steps, torch.zeros(H, total, total, dtype=torch.bool)
    held = kept = [at[:0]] * G
    for begin, end in pairwise((*accumulate(chunks, initial=0), *range(prompt + 1, total + 1))):
        held = [torch.cat((one, at[begin:end])) for one in held]
        for h in range(H):
            mask[h, begin:end, held[h // (H // G)]] = True
        if is_cut_due(rules, end - prompt):
            count = rules.counts(max(end, prompt), layers)[layer]
            heads = [CacheView(k[g, one], v[g, one], one) for g, one in enumerate(held)]
            queries = q[:, end - count_queries(rules, prompt, end) : end]
            held = rules.keep_positions(heads, queries, end, layer, count)
        kept = held if end <= prompt else kept
    return mask & (at <= at[:, None]), kept


def is_cut_due(rules: CutRules, step: int) -> bool:
    """Whether there is a cut after a decode step, counted from 1; 0 is the prompt's end, less a chunk before it."""
    if step > 0:
        return rules.every is not None and step % rules.every == 0
    return rules.prefill == "chunk" or (rules.prefill == "end" and step == 0)


def count_queries(rules: CutRules, prompt: int, end: int) -> int:
    """How many of the queries before position `end` are remembered."""
    if rules.query_window <= 1:
        return 1
    if end <= prompt:
        return min(end, rules.query_window)
    return min(rules.recent, min(prompt, rules.query_window) + end - prompt)
