"""Results of an attention method's hooks: plans for reading, and what is kept in the cache.

All are frozen values; the engine owns memory and applies them. Axes: H query heads, G key/value heads (query head h
reads key/value head h // (H // G)), T new tokens, S tokens read so far with the new ones, d head width. Knows nothing
about pages, kernels or the decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

if TYPE_CHECKING:
    from services.llm_longctx.kernels import BlockCsr


@dataclass(frozen=True, slots=True)
class HeadRoles:
    """Which heads a method treats how, in the whole model.

    Attributes:
        full: [L][G], true where the key/value head keeps its whole history; None means all do. Heads that are not full
            may be cut by `after_prefill`; the others are never asked about.
        calibrated: (layer, query head) pairs that `epilogue` changes (ACT).
    """

    full: tuple[tuple[bool, ...], ...] | None = None
    calibrated: frozenset[tuple[int, int]] = frozenset()

    def full_in(self, layer: int, kv_heads: int) -> tuple[bool, ...]:
        """The key/value heads of one layer, [G]."""
        return (True,) * kv_heads if self.full is None else self.full[layer]


@dataclass(frozen=True, slots=True)
class Footprint:
    """Entries that will be held, as nested tuples [L][G].

    Attributes:
        entries: Entries of the key/value heads themselves. The engine rounds each up to whole pages.
        compact: Entries of compact copies (Recycled), rounded by themselves; None where there are none.
        is_bound: Whether these are upper bounds only, because how many are held depends on the text.
    """

    entries: tuple[tuple[int, ...], ...]
    compact: tuple[tuple[int, ...], ...] | None = None
    is_bound: bool = False


# Prefill: how the queries of one chunk read.


@dataclass(frozen=True, slots=True)
class Dense:
    """Each query reads everything held up to and including itself."""


@dataclass(frozen=True, slots=True)
class WindowSink:
    """Position j is visible to position i iff j <= i and (j < sink or i - j < window); token-exact, all given heads."""

    sink: int
    window: int


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """Block-sparse reading, token-causal in the diagonal block.

    Attributes:
        csr: Kept blocks per query block and head. Its rows are the query blocks *of this chunk* in order (row r covers
            positions offset + r·block …), its columns count key blocks from position 0; H is the chunk's number of
            query heads, or of key/value heads where all heads of a group share one mask. The engine serves it where
            `offset` is a multiple of `csr.block`, and chunks lie on a grid of 512, so that it is.
        density: Kept blocks / causal blocks, mean over heads, told in `usage`; None lets the engine count.
    """

    csr: BlockCsr
    density: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class TokenRows:
    """Queries at positions begin … end-1 read `tokens` [m] (ascending positions, causal among them), or all if None."""

    begin: int
    end: int
    tokens: Tensor | None


@dataclass(frozen=True, slots=True)
class TokenLists:
    """Token lists shared by all heads, one per run of queries; the runs cover the chunk without gaps, in order.

    Attributes:
        rows: The runs.
        block: Where runs with lists are blocks of so many positions counted from 0, cut only by the ends of what the
            lists cover: a kernel then takes them all in one call.
    """

    rows: tuple[TokenRows, ...]
    block: int | None = None


PrefillPlan = Dense | WindowSink | Blocks | TokenLists


# Decode: what one query reads.


@dataclass(frozen=True, slots=True)
class Pages:
    """Everything that the head holds, the new entry included."""


@dataclass(frozen=True, slots=True)
class Compact:
    """The head's compact copy, to which the engine has appended the new entry."""


@dataclass(frozen=True, slots=True)
class Ranges:
    """Entries at positions in one of the half-open, ascending `spans`; for heads that keep their whole history."""

    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """How one sequence decodes at one layer.

    Attributes:
        views: One view for all key/value heads, or one per key/value head [G].
        want_scores: Whether `after_decode` is called, with the probabilities of this step over everything read.
    """

    views: Pages | Compact | Ranges | tuple[Pages | Compact | Ranges, ...] = Pages()
    want_scores: bool = False

    def view(self, kv_head: int) -> Pages | Compact | Ranges:
        """The view of one head."""
        return self.views[kv_head] if isinstance(self.views, tuple) else self.views


# Memory: what is kept afterwards.


@dataclass(frozen=True, slots=True, eq=False)
class Virtual:
    """An entry that stands for `count` dropped ones: key `k` [d] (never rotated again), value `v` [d].

    Its logit gets `log_weight` after the scale (ln count counts it as that many equal keys; 0 counts it once).
    """

    k: Tensor
    v: Tensor
    log_weight: float
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class RetentionPolicy:
    """Entries that one key/value head keeps from now on.

    Attributes:
        positions: Ascending logical positions [m] that stay, int64; None keeps all. The pages of the others go back.
        virtual: An entry to hold besides them, or None.
        sink: With `slide`: positions below it never leave.
        slide: While decoding, at most so many entries beyond the sinks are held *between* steps: a step appends its own
            entry, attends to everything (sink + slide + itself), then the oldest leaves. None: nothing leaves.
        absorb: Entries that leave by sliding are averaged into the virtual entry (made if there is none).
        weighted: With `absorb`: whether the virtual entry's log-weight follows ln count; else it stays 0.
    """

    positions: Tensor | None = None
    virtual: Virtual | None = None
    sink: int = 0
    slide: int | None = None
    absorb: bool = False
    weighted: bool = True

    @classmethod
    def ends(cls, held: Tensor, sink: int, recent: int, *, slide: bool) -> Self:
        """Of positions `held` [n], in any order: the first `sink` and the last `recent`, sliding in decode or not."""
        at = held.sort().values
        kept = torch.cat((at[:sink], at[len(at) - recent :])) if len(at) > sink + recent else None
        return cls(positions=kept, sink=sink, slide=recent if slide else None)


@dataclass(frozen=True, slots=True)
class CacheUpdate:
    """Decision after a chunk or a step, for one sequence at one layer.

    Attributes:
        retain: Key/value head → what it keeps; heads that are not named keep what they have. Only heads that
            `HeadRoles.full` says are not full may be named.
        compact: Key/value head → positions [K] whose entries are copied into a compact run, replacing the last one.
        memo: The method's note for its next hook of this layer (`memo` of the views). Immutable.
    """

    retain: Mapping[int, RetentionPolicy] = field(default_factory=dict)
    compact: Mapping[int, Tensor] = field(default_factory=dict)
    memo: object = None
