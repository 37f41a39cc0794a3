"""Method policies: a method made ready for one model and one plan, layer by layer.

Layers with a sliding window of their own keep it, whatever the method. Knows nothing about memory or requests.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from services.llm_longctx.kv_cache import RECENT, CacheBits, PagePool
from services.llm_longctx.methods import AttentionMethod, method
from services.llm_longctx.methods.core.hook_inputs import Chunk, PostPrefillView
from services.llm_longctx.methods.core.hook_results import (
    CacheUpdate,
    Footprint,
    HeadRoles,
    PrefillPlan,
    RetentionPolicy,
    WindowSink,
)
from shared.lm.config import DecoderConfig
from shared.lm.head_plan import HeadPlan

CHUNK = 512
"""Served prompts are read in chunks that end on multiples of this: an absolute grid, so that a cached prefix leads to
the same shapes."""


class _SlidingLayer(AttentionMethod):
    """Attention of a layer with a window of its own: it sees the last `window` tokens and keeps no others."""

    name: ClassVar[str] = "sliding-layer"
    window: int

    def prefill_plan(self, chunk: Chunk) -> PrefillPlan:
        return WindowSink(0, self.window)

    def after_prefill(self, view: PostPrefillView) -> CacheUpdate:
        kept = [RetentionPolicy.ends(head.positions, 0, self.window - 1, slide=True) for head in view.heads]
        return CacheUpdate(retain=dict(enumerate(kept)))


def windows_of(config: DecoderConfig) -> tuple[int | None, ...]:
    """The sliding window of each layer in tokens, itself included; None for global layers."""
    return getattr(config, "windows", None) or (None,) * config.layers


@dataclass(frozen=True, eq=False)
class Policy:
    """One method on one model.

    Attributes:
        method: The method.
        plan: The artefact that it was given.
        heads: Its result for each head.
        full: [L,G], heads that keep their whole history.
        config: The model's facts.
        layers: The method of each layer: the request's, or the layer's own window.
        cache_bits: Format of older pages, or 16 for the decoder's own type.
        asked: The request's own budget, to which these knobs were fitted; empty without one.
    """

    method: AttentionMethod
    plan: HeadPlan | None
    heads: HeadRoles
    full: np.ndarray
    config: DecoderConfig
    layers: tuple[AttentionMethod, ...]
    cache_bits: CacheBits | Literal[16] = 16
    asked: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        config: DecoderConfig,
        wanted: str | AttentionMethod,
        plan: HeadPlan | Mapping[str, Any] | None = None,
        weights_sha256: str = "",
        *,
        force: bool = False,
        cache_bits: CacheBits | Literal[16] = 16,
    ) -> Policy:
        """Make a method ready.

        Raises InvalidOption: no such method, or it can't work with this plan; BadInput: the plan is another model's.
        """
        chosen = method(wanted) if isinstance(wanted, str) else wanted
        checked = None if plan is None else HeadPlan.parse(plan).check(config, weights_sha256, force=force)
        chosen = chosen.bind(checked)
        heads, windows = chosen.head_plan(config, checked), windows_of(config)
        full = np.array([heads.full_in(layer, config.kv_heads) for layer in range(config.layers)], bool)
        full[[w is not None for w in windows]] = False
        layers = tuple(chosen if w is None else _SlidingLayer(window=w) for w in windows)
        return cls(chosen, checked, heads, full, config, layers, cache_bits)

    def calibrated_heads(self, layer: int) -> tuple[int, ...]:
        """Query heads of a layer that the method's epilogue changes, ascending."""
        if self.layers[layer] is not self.method:
            return ()
        return tuple(sorted(head for at, head in self.heads.calibrated if at == layer))

    def footprint(self, prompt: int, new: int) -> tuple[np.ndarray, np.ndarray]:
        """Entries that will be held [L,G], and entries of compact copies [L,G]."""
        estimate: Footprint = self.method.estimate(self.config, self.heads, prompt, new)
        entries = np.array(estimate.entries, np.int64)
        compact = np.zeros_like(entries) if estimate.compact is None else np.array(estimate.compact, np.int64)
        for layer, window in enumerate(windows_of(self.config)):
            if window is not None:
                entries[layer], compact[layer] = min(prompt + new, window), 0
        return entries, compact

    def pages(self, prompt: int, new: int, page: int) -> int:
        """Pages of `page` entries that a request will hold, rounded up head by head."""
        entries, compact = self.footprint(prompt, new)
        pages = -(-entries // page)
        if self.method.shares_layer_budget or self.method.shares_model_budget:
            # The shares of the cut heads are not known: count the most pages that their sum can take.
            cut = ~self.full & np.array([layer is self.method for layer in self.layers])[:, None]
            held, extra = np.where(cut, entries, 0).sum(1), cut.sum(1) * (page - 1)
            if self.method.shares_model_budget:
                held, extra = held.sum(keepdims=True), extra.sum(keepdims=True)
            shared = (held + extra) // page
            return int(np.where(cut, 0, pages).sum() + shared.sum() + (-(-compact // page)).sum())
        return int(pages.sum() + (-(-compact // page)).sum())

    def nbytes(self, prompt: int, new: int, pool: PagePool) -> int:
        """Bytes of the pages that a request will hold; in few bits rounded up further where heads are cut."""
        if self.cache_bits == 16:
            return self.pages(prompt, new, pool.page) * pool.page_bytes
        entries, compact = self.footprint(prompt, new)
        cut = ~self.full
        if self.method.shares_layer_budget or self.method.shares_model_budget:
            # Few entries are dear, because recent ones are whole: heads that share evenly hold the most bytes.
            entries = np.where(cut, -(-np.where(cut, entries, 0).sum() // max(int(cut.sum()), 1)), entries)
        page, few = pool.page, pool.open_packed(self.cache_bits).page_bytes
        packed = (entries - page - RECENT - 1).clip(min=0) // page
        whole = -(-(entries - packed * page) // page) + -(-compact // page)
        # A cut head begins a page more for what never leaves, and what has left a window goes by whole pages.
        return int(((whole + cut) * pool.page_bytes + (packed + cut * 2) * few).sum())

    @property
    def is_chunk_invariant(self) -> bool:
        """Whether chunk borders change nothing but rounding: in few bits, they decide what is read whole."""
        return self.method.chunk_invariant and self.cache_bits == 16

    def next_chunk(self, read: int, prompt: int, limit: int = CHUNK) -> int:
        """Tokens of the next chunk of a prompt of which `read` tokens are read; `limit`, where borders change nothing.

        Chunks end on multiples of 512 or with the prompt. The rest behind a cached prefix is therefore one product
        per matrix: read page by page it would take almost twice as long.
        """
        if not self.method.supports.chunked_prefill:
            return prompt - read
        size = min((read // CHUNK + 1) * CHUNK, prompt) - read
        return min(size, limit) if self.is_chunk_invariant else size

    def fingerprint(self, model: str, dtype: torch.dtype, backend: str) -> str:
        """Facts that a cached prefix depends on besides its tokens; methods that read prompts densely share one."""
        identity = self.method.identity()
        facts = {
            "model": model,
            "dtype": str(dtype),
            "backend": backend,
            "chunk": CHUNK,
            **identity,
            "plan": self.plan.digest if identity and self.plan is not None else None,
            "cache_bits": self.cache_bits,
        }
        return _digest(facts)

    def with_cache(self, bits: CacheBits | Literal[16]) -> Policy:
        """The same with a cache of so many bits."""
        return self if bits == self.cache_bits else replace(self, cache_bits=bits)

    def with_budget(self, asked: AttentionMethod, budget: Mapping[str, float]) -> Policy:
        """The same, but judged as what was asked for: knobs that follow from a budget differ from prompt to prompt."""
        return replace(self, asked={"knobs": asked.model_dump(mode="json"), **budget})

    @cached_property
    def variant(self) -> str:
        """Identity for its fidelity besides the method's name: knobs, or the budget they follow from, and plan."""
        facts = self.asked or {"knobs": self.method.model_dump(mode="json")}
        return _digest(
            {**facts, "cache_bits": self.cache_bits, "plan": None if self.plan is None else self.plan.digest}
        )


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
