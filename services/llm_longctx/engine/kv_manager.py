"""State of one sequence on pages: its KV cache, its method's policy, and what the method remembers of it.

Knows nothing about the decoder, other sequences, sampling or scheduling.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np
from torch import Tensor

from services.llm_longctx.engine.attention.method_policy import Policy
from services.llm_longctx.engine.drafting.prompt_lookup import DraftMeter, PromptLookup
from services.llm_longctx.kv_cache import FewBitCache, PagedCache, PagePool, PageStore
from shared.lm.lora import LoraAdapter


class PagedState:
    """Holds pages until it is closed.

    Attributes:
        policy: The method that serves the sequence.
        adapter: Its LoRA adapter, or None.
        cache: Keys and values.
        memos: The method's memory, per layer.
        prompt_length: Tokens of the prompt.
        max_length: Tokens that prompt and answer are expected to have together.
        densities: Of block-sparse prefills, per layer and chunk.
        full_steps: Steps whose scores the method asked for.
        cached_tokens: Tokens that came from the prefix cache.
        read_ids: The prompt so far, for methods that replay it.
        verified: Tokens of a draft that were fed already, each with the logits [V] behind it.
        draft_cost: Seconds of the step with the last draft, and its tokens; zeros once it is settled.
        lookup: Drafts tokens.
        meter: Whether that pays.
        is_closed: Whether it gave back its pages.
    """

    def __init__(self, pool: PagePool, policy: Policy, adapter: LoraAdapter | None = None) -> None:
        layers = policy.config.layers
        self.policy, self.adapter = policy, adapter
        self.cache = _open_cache(pool, policy)
        self.memos: list[object] = [None] * layers
        self.prompt_length = 0
        self.max_length = 0
        self.densities: list[float] = []
        self.full_steps = 0
        self.cached_tokens = 0
        self.read_ids: list[int] = []
        self.verified: deque[tuple[int, Tensor]] = deque()
        self.draft_cost = 0.0, 0
        self.lookup, self.meter = PromptLookup(), DraftMeter()
        self.is_closed = False

    def reserve(self, prompt: int, new: int) -> None:
        """Reserve addresses for a prompt of so many tokens and an answer, so that nothing need move later.

        Raises:
            PoolExhausted: There are no addresses left.
        """
        self.prompt_length, self.max_length = prompt, prompt + new
        entries, _ = self.policy.footprint(prompt, new)
        if self.policy.method.cut_at_end:
            entries = entries.clip(min=prompt)  # what is cut at the end is whole until then
        self.cache.reserve((entries - sum(part.n for part in self.cache.shared)).clip(min=1))

    def fork(self) -> Self:
        """A twin that goes its own way and shares whole pages.

        Raises:
            PoolExhausted: There is no room for what is copied.
        """
        self.settle_draft()
        twin = type(self)(self.cache.pool, self.policy, self.adapter)
        twin.resume(self.cache.fork(), self.memos)
        twin.prompt_length, twin.max_length = self.prompt_length, self.max_length
        twin.densities, twin.full_steps = list(self.densities), self.full_steps
        twin.cached_tokens = self.cached_tokens
        return twin

    def resume(self, cache: PagedCache, memos: Iterable[object]) -> None:
        """Go on from what another sequence has read; what was reserved before is given back."""
        self.cache.close()
        self.cache, self.memos = cache, list(memos)

    def settle_draft(self) -> None:
        """Take back what was fed of a draft and did not come true, and note what the draft was good for."""
        seconds, drafted = self.draft_cost
        if drafted:
            self.meter.add_drafted(seconds, 1 + drafted - len(self.verified))
            self.draft_cost = 0.0, 0
        self.cache.truncate(len(self.verified))
        self.verified.clear()

    def close(self) -> None:
        """Give back all pages; once is enough."""
        self.is_closed = True
        self.cache.close()


def count_bytes(states: Sequence[PagedState]) -> int:
    """Bytes of all pages that some of the states hold; shared ones count once."""
    held: dict[PageStore, list[np.ndarray]] = {}
    for s in states:
        for store, pages in s.cache.held_pages().items():
            held.setdefault(store, []).append(pages)
    return sum(len(np.unique(np.concatenate(pages))) * store.page_bytes for store, pages in held.items())


def _open_cache(pool: PagePool, policy: Policy) -> PagedCache:
    layers, heads, bits = policy.config.layers, policy.config.kv_heads, policy.cache_bits
    return PagedCache(pool, layers, heads) if bits == 16 else FewBitCache(pool, layers, heads, bits)
