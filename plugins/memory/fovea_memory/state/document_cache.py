"""Document cache: a prefix cache of landmark sessions, shared by requests whose documents begin alike.

A checkpoint is a session after a multiple of `CHECKPOINT_TOKENS` tokens; those of one text form a chain by rolling hash
and share their blocks; one that another replica made stands alone. Under pressure the least recently used end of a
chain is evicted first. Thread-safe. Knows sessions by their bytes; knows no text.
"""

import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from fovea_memory.mixers.landmark.session import LandmarkSession

CHECKPOINT_TOKENS = 64
"""Tokens between two checkpoints."""

DEFAULT_MAX_BYTES = 256 * 2**20
"""Default of the most bytes of all checkpoints."""


@dataclass(eq=False, slots=True)
class _Checkpoint:
    """A session after some tokens, the key of the checkpoint before it, and what it holds beyond that one."""

    session: LandmarkSession
    parent: bytes
    own_bytes: int
    own_blocks: int
    used: int
    children: int = 0


class DocumentCache:
    """Checkpoints of one model."""

    def __init__(self, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._checkpoints: dict[bytes, _Checkpoint] = {}
        self._clock = count()
        self._lock = threading.Lock()
        self.nbytes = 0
        self.num_blocks = 0

    def __len__(self) -> int:
        return len(self._checkpoints)

    def find_longest(self, base_key: bytes, ids: Sequence[int], max_tokens: int) -> tuple[LandmarkSession, int] | None:
        """The longest cached prefix of at most `max_tokens` tokens, and its length; see `add`."""
        found: tuple[LandmarkSession, int] | None = None
        with self._lock:
            for key, end in _iterate_checkpoints(base_key, ids[:max_tokens]):
                if (checkpoint := self._checkpoints.get(key)) is not None:
                    checkpoint.used = next(self._clock)
                    found = checkpoint.session, end
        return found

    def add(self, base_key: bytes, ids: Sequence[int], session: LandmarkSession) -> None:
        """Cache the session that has read these tokens, if they end at a checkpoint and the one before it is cached.

        Args:
            base_key: Identifies tenant, weights and options.
            ids: The tokens.
            session: The session.
        """
        *_, parent, key = (b"", *(key for key, _ in _iterate_checkpoints(base_key, ids)))
        with self._lock:
            if len(ids) % CHECKPOINT_TOKENS or key in self._checkpoints or (parent and parent not in self._checkpoints):
                return
            self._put(key, parent, session)

    def insert(self, base_key: bytes, ids: Sequence[int], session: LandmarkSession) -> None:
        """Cache a session from another replica at the last checkpoint of these tokens, without those before.

        One that is larger than the whole cache is not kept: it would only evict everything else.
        """
        key, end = last_checkpoint(base_key, ids)
        with self._lock:
            if end and key not in self._checkpoints and session.nbytes <= self._max_bytes:
                self._put(key, b"", session)

    def remove(self, base_key: bytes, ids: Sequence[int]) -> None:
        """Drop the checkpoints that only this text has."""
        with self._lock:
            for key, _ in reversed(list(_iterate_checkpoints(base_key, ids))):
                if (checkpoint := self._checkpoints.get(key)) is not None:
                    if checkpoint.children:
                        return
                    self._drop(key)

    def _put(self, key: bytes, parent: bytes, session: LandmarkSession) -> None:
        nbytes, blocks = session.nbytes, session.num_blocks
        if (before := self._checkpoints.get(parent)) is not None:
            before.children += 1
            nbytes, blocks = nbytes - before.session.nbytes, blocks - before.session.num_blocks
        self._checkpoints[key] = _Checkpoint(session.fork(), parent, max(nbytes, 0), max(blocks, 0), next(self._clock))
        self.nbytes += self._checkpoints[key].own_bytes
        self.num_blocks += self._checkpoints[key].own_blocks
        while self.nbytes > self._max_bytes:
            leaves = (key for key, checkpoint in self._checkpoints.items() if not checkpoint.children)
            self._drop(min(leaves, key=lambda key: self._checkpoints[key].used))

    def _drop(self, key: bytes) -> None:
        checkpoint = self._checkpoints.pop(key)
        self.nbytes -= checkpoint.own_bytes
        self.num_blocks -= checkpoint.own_blocks
        if checkpoint.parent in self._checkpoints:
            self._checkpoints[checkpoint.parent].children -= 1


def last_checkpoint(base_key: bytes, ids: Sequence[int]) -> tuple[bytes, int]:
    """Key and length of the last checkpoint of these tokens; length 0 if they are shorter than one."""
    *_, last = (base_key, 0), *_iterate_checkpoints(base_key, ids)
    return last


def _iterate_checkpoints(base_key: bytes, ids: Sequence[int]) -> Iterator[tuple[bytes, int]]:
    """(key, end) of each checkpoint of these tokens, shortest first."""
    key = base_key
    for end in range(CHECKPOINT_TOKENS, len(ids) + 1, CHECKPOINT_TOKENS):
        tokens = np.asarray(ids[end - CHECKPOINT_TOKENS : end], np.int64).tobytes()
        key = hashlib.sha256(key + tokens).digest()
        yield key, end
