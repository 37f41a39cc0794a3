"""State of one sequence on pages: its KV cache, its method's policy, and what the method remembers of it.

Knows nothing about the decoder, other sequences, sampling or scheduling.
"""

from collections.abc import Iterable
from typing import Self

from services.llm_longctx.engine.attention.method_policy import Policy
from services.llm_longctx.kv_cache import FewBitCache, PagedCache, PagePool
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
        peak_bytes: Most that was held while the prompt was read.
        densities: Per layer and chunk the share that was read of the causal pairs, and how many these are.
        full_steps: Steps whose scores the method asked for.
        read_ids: The prompt so far, for methods that replay it.
    """

    def __init__(self, pool: PagePool, policy: Policy, adapter: LoraAdapter | None = None) -> None:
        (layers, heads), bits = policy.full.shape, policy.cache_bits
        self.policy, self.adapter = policy, adapter
        self.cache = PagedCache(pool, layers, heads) if bits == 16 else FewBitCache(pool, layers, heads, bits)
        self.memos: list[object] = [None] * layers
        self.prompt_length = self.max_length = self.peak_bytes = self.full_steps = 0
        self.densities: list[tuple[float, float]] = []
        self.read_ids: list[int] = []

    @property
    def prefill_density(self) -> float:
        """Share of causal pairs that was read, of the part of the prompt that was not known before."""
        return sum(x * n for x, n in self.densities) / sum(n for _, n in self.densities) if self.densities else 1.0

    def reserve(self, prompt: int, new: int) -> None:
        """Reserve addresses for a prompt of so many tokens and an answer, so that nothing need move later.

        Raises PoolExhausted: there are no addresses left.
        """
        self.prompt_length, self.max_length = prompt, prompt + new
        entries, _ = self.policy.footprint(prompt, new)
        if self.policy.method.cut_at_end:
            entries = entries.clip(min=prompt)  # what is cut at the end is whole until then
        self.cache.reserve((entries - sum(part.n for part in self.cache.shared)).clip(min=1))

    def fork(self) -> Self:
        """A twin that goes its own way and shares whole pages.

        Raises PoolExhausted: there is no room for what is copied.
        """
        twin = type(self)(self.cache.pool, self.policy, self.adapter)
        twin.resume(self.cache.fork(), self.memos)
        twin.prompt_length, twin.max_length = self.prompt_length, self.max_length
        twin.densities, twin.full_steps = list(self.densities), self.full_steps
        return twin

    def resume(self, cache: PagedCache, memos: Iterable[object]) -> None:
        """Go on from what another sequence has read; what was reserved before is given back."""
        self.cache.close()
        self.cache, self.memos = cache, list(memos)

    def close(self) -> None:
        """Give back all pages; once is enough."""
        self.cache.close()
