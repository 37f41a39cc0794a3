"""Prefix cache: pages of prompts, kept for sequences that begin alike under the same fingerprint.

A prefix of whole pages holds them by reference; those of one prompt form a chain by rolling hash. Under pressure the
longest prefix that was used longest ago goes first. Knows nothing about scheduling.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fovea.errors import InvalidOption
from services.llm_longctx.engine.attention.method_policy import CHUNK, Policy
from services.llm_longctx.engine.kv_manager import PagedState
from services.llm_longctx.engine.model_runner import ModelRunner
from services.llm_longctx.engine.requests.request import GenerationRequest
from services.llm_longctx.kv_cache import PagedCache, PoolExhausted


class _Node(NamedTuple):
    """A prefix: its cache, and what the method remembers of it."""

    cache: PagedCache
    memos: tuple[object, ...]


class PrefixCache:
    """Prefixes that one model has read, in blocks of `block` tokens (a multiple of the pool's page)."""

    def __init__(self, runner: ModelRunner, block: int) -> None:
        if block % runner.pool.page:
            detail = f"Cached prefixes grow by whole pages of {runner.pool.page} tokens, not by {block}."
            raise InvalidOption(detail, field="prefix_block")
        self._runner = runner
        self._block = block
        # By last use, each prefix behind the longer ones that begin with it: the first is the first to go.
        self._nodes: OrderedDict[bytes, _Node] = OrderedDict()

    def __len__(self) -> int:
        return len(self._nodes)

    def attach(self, s: PagedState, request: GenerationRequest) -> int:
        """Let a sequence that has read nothing begin with the longest known prefix of a request: its tokens."""
        if not s.policy.method.supports.prefix_reuse or request.boundaries is not None:
            return 0
        ids = request.prompt_ids
        limit = len(ids) - max(s.policy.method.min_uncached_tokens, 1)
        if request.score_prompt:
            limit = min(limit, request.score_from - 1)
        if request.taps is not None:
            limit = min(limit, request.taps.first_captured)
        chain: list[bytes] = []
        for key, end in self._keys(s.policy, request, len(ids)):
            if end > limit or key not in self._nodes:
                break
            chain.append(key)
        if not chain:
            return 0
        self._note_use(chain)
        found = self._nodes[chain[-1]]
        try:
            s.resume(found.cache.fork(), found.memos)
        except PoolExhausted:
            return 0
        return s.cache.length

    def add(self, s: PagedState, request: GenerationRequest) -> None:
        """Remember what a sequence has read so far, where it ends on a border that others can use."""
        method, cache = s.policy.method, s.cache
        if not method.supports.prefix_reuse or request.boundaries is not None:
            return
        # Where this prompt ends others go on: what was cut there, or read as a last chunk, is of no use to them.
        ended = cache.length == len(request.prompt_ids)
        invariant = s.policy.is_chunk_invariant
        if (method.cut_at_end and cache.cut.any()) or (not invariant and ended):
            return
        chain: list[bytes] = []
        for key, end in self._keys(s.policy, request, cache.length):
            if key not in self._nodes:
                if not invariant and end != cache.length:
                    break
                try:
                    kept = cache.prefix(end) if invariant else cache.fork()
                except PoolExhausted:
                    break
                self._nodes[key] = _Node(kept, tuple(s.memos))
            chain.append(key)
        self._note_use(chain)

    def make_room(self, pages: int) -> bool:
        """Forget until so many pages are free; whether they are."""
        pool = self._runner.pool
        while pool.free < pages and self._nodes:
            self._nodes.popitem(last=False)[1].cache.close()
        return pool.free >= pages

    def clear(self) -> None:
        """Forget everything."""
        for node in self._nodes.values():
            node.cache.close()
        self._nodes.clear()

    def _note_use(self, chain: list[bytes]) -> None:
        for key in reversed(chain):
            self._nodes.move_to_end(key)

    def _keys(self, policy: Policy, request: GenerationRequest, length: int) -> Iterator[tuple[bytes, int]]:
        """(key, end) of each prefix of whole blocks among a prompt's first tokens, shortest first.

        Prefixes of another salt or adapter have other keys, and so have those read under other edits. Before the
        first token that an edit changes, a prefix is everybody's.
        """
        runner, dtype = self._runner, self._runner.model.output_matrix.dtype
        block = self._block if policy.is_chunk_invariant else CHUNK
        ids, salt, taps = request.prompt_ids, request.run.cache_salt, request.taps
        adapter = "" if request.adapter is None else request.adapter.digest
        facts = policy.fingerprint(runner.weights_sha256, dtype, runner.backend)
        key = hashlib.sha256(f"{facts}\0{salt}\0{adapter}".encode()).digest()
        for end in range(block, length + 1, block):
            tokens = np.asarray(ids[end - block : end], np.int64).tobytes()
            steered = "" if taps is None else taps.digest(end)
            key = hashlib.sha256(key + tokens + steered.encode()).digest()
            yield key, end
