"""The prefix cache: what sequences have read, kept for others that begin alike under the same fingerprint.

A node is a prefix of whole pages and holds them by reference; nodes of one prompt form a chain by rolling hash. Under
pressure the leaf that was used longest ago goes first. Knows nothing about scheduling.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from services.llm_longctx.engine.method_policy import CHUNK, Policy
from services.llm_longctx.kv_cache import PoolExhausted, SequenceCache

if TYPE_CHECKING:
    from services.llm_longctx.engine.llm_engine import Engine
    from services.llm_longctx.engine.open_sequence import OpenSequence
    from services.llm_longctx.engine.order import Order

__all__ = ["Prefixes"]


@dataclass(eq=False, slots=True)
class _Node:
    """A prefix: its memory, what the method remembers of it, and how it is found.

    Attributes:
        parent: Key of the prefix that is one block shorter; empty for the first.
        used: When it was used last.
        children: Prefixes that are one block longer.
    """

    memory: SequenceCache
    memos: tuple[object, ...]
    parent: bytes
    used: int
    children: int = 0


class Prefixes:
    """Prefixes of one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._nodes: dict[bytes, _Node] = {}
        self._clock = count()

    def __len__(self) -> int:
        return len(self._nodes)

    def begin(self, s: OpenSequence, order: Order) -> int:
        """Let a sequence that has read nothing begin with the longest known prefix of an order: its tokens."""
        if not s.policy.method.supports.prefix_reuse or order.boundaries is not None:
            return 0
        limit = len(order.ids) - max(s.policy.method.unread_tokens, 1)
        if order.score_prompt:
            limit = min(limit, order.score_from - 1)
        found: _Node | None = None
        for key, end in self._keys(s.policy, order.ids):
            if end > limit or (node := self._nodes.get(key)) is None:
                break
            node.used = next(self._clock)
            found = node
        if found is None:
            return 0
        try:
            s.resume(found.memory.fork(), found.memos, s.prompt, s.room)
        except PoolExhausted:
            return 0
        s.cached = s.memory.length
        return s.cached

    def add(self, s: OpenSequence, order: Order) -> None:
        """Remember what a sequence has read so far, where it ends on a border that others can use."""
        method, memory = s.policy.method, s.memory
        if not method.supports.prefix_reuse or order.boundaries is not None:
            return
        # Where this prompt ends others go on: what was cut there, or read as a last chunk, is of no use to them.
        ended = memory.length == len(order.ids)
        if (method.cut_at_end and memory.cut.any()) or (not method.chunk_invariant and ended):
            return
        parent = b""
        for key, end in self._keys(s.policy, order.ids[: memory.length]):
            if key not in self._nodes:
                if not method.chunk_invariant and end != memory.length:
                    return
                try:
                    kept = memory.prefix(end) if method.chunk_invariant else memory.fork()
                except PoolExhausted:
                    return
                self._nodes[key] = _Node(kept, tuple(s.memos), parent, next(self._clock))
                if parent:
                    self._nodes[parent].children += 1
            parent = key

    def make_room(self, pages: int) -> bool:
        """Forget until so many pages are free; whether they are."""
        pool = self._engine.pool
        while pool.free < pages and self._nodes:
            key = min((k for k, n in self._nodes.items() if not n.children), key=lambda k: self._nodes[k].used)
            self._forget(key)
        return pool.free >= pages

    def clear(self) -> None:
        """Forget everything."""
        for node in self._nodes.values():
            node.memory.close()
        self._nodes = {}

    def _forget(self, key: bytes) -> None:
        node = self._nodes.pop(key)
        node.memory.close()
        if node.parent in self._nodes:
            self._nodes[node.parent].children -= 1

    def _keys(self, policy: Policy, ids: Sequence[int]) -> Iterator[tuple[bytes, int]]:
        """(key, end) of each prefix of whole blocks, shortest first."""
        like, engine = self._engine.model.output_matrix, self._engine
        block = engine.pool.page if policy.method.chunk_invariant else CHUNK
        key = policy.fingerprint(engine.weights_sha256, like.dtype, engine.backend).encode()
        for end in range(block, len(ids) + 1, block):
            tokens = np.asarray(ids[end - block : end], np.int64).tobytes()
            key = hashlib.sha256(key + tokens).digest()
            yield key, end
