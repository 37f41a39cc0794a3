"""The shelf: beginnings of documents that a landmark model has read, kept for whoever begins alike.

A beginning is a session after whole stretches of tokens; those of one text form a chain by rolling hash and share
their blocks; one that was read elsewhere stands alone. Under pressure the longest-unused end of a chain goes first.
Safe to use from several threads. Knows sessions by how many bytes they remember; knows no text.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from services.llm_longctx.mixers.landmark.session import LandmarkSession

__all__ = ["STRETCH", "DocumentCache", "beginning"]

STRETCH = 64
"""Tokens between two beginnings."""

MOST_BYTES = 256 * 2**20
"""What all beginnings may come to, unless told otherwise."""


@dataclass(eq=False, slots=True)
class _Node:
    """A beginning: the session behind it, the beginning one stretch shorter, and what it holds beyond that one."""

    session: LandmarkSession
    parent: bytes
    own_bytes: int
    own_blocks: int
    used: int
    children: int = 0


class DocumentCache:
    """Beginnings of one model."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._nodes: dict[bytes, _Node] = {}
        self._clock = count()
        self._lock = threading.Lock()
        self.nbytes = 0
        self.blocks = 0

    def __len__(self) -> int:
        return len(self._nodes)

    def longest(self, base: bytes, ids: Sequence[int], most: int) -> tuple[LandmarkSession, int] | None:
        """The longest known beginning of at most `most` tokens, and its length; `base` says how it was read."""
        found: tuple[LandmarkSession, int] | None = None
        with self._lock:
            for key, end in _keys(base, ids[:most]):
                if (node := self._nodes.get(key)) is not None:
                    node.used = next(self._clock)
                    found = node.session, end
        return found

    def add(self, base: bytes, ids: Sequence[int], session: LandmarkSession) -> None:
        """Keep the session that has read these tokens, if they are whole stretches behind one that is kept."""
        *_, parent, key = (b"", *(key for key, _ in _keys(base, ids)))
        with self._lock:
            if len(ids) % STRETCH or key in self._nodes or (parent and parent not in self._nodes):
                return
            self._put(key, parent, session)

    def plant(self, base: bytes, ids: Sequence[int], session: LandmarkSession) -> None:
        """Keep a session that was read elsewhere, up to the last whole stretch of these tokens, without those before.

        One that is larger than the whole shelf is not kept: it would only push everything else off.
        """
        key, end = beginning(base, ids)
        with self._lock:
            if end and key not in self._nodes and session.nbytes <= self._most_bytes:
                self._put(key, b"", session)

    def forget(self, base: bytes, ids: Sequence[int]) -> None:
        """Let go of what only this text has."""
        with self._lock:
            for key, _ in reversed(list(_keys(base, ids))):
                if (node := self._nodes.get(key)) is not None:
                    if node.children:
                        return
                    self._drop(key)

    def _put(self, key: bytes, parent: bytes, session: LandmarkSession) -> None:
        nbytes, blocks = session.nbytes, session.stored
        if (before := self._nodes.get(parent)) is not None:
            before.children += 1
            nbytes, blocks = nbytes - before.session.nbytes, blocks - before.session.stored
        self._nodes[key] = _Node(session.fork(), parent, max(nbytes, 0), max(blocks, 0), next(self._clock))
        self.nbytes += self._nodes[key].own_bytes
        self.blocks += self._nodes[key].own_blocks
        while self.nbytes > self._most_bytes:
            self._drop(min((k for k, n in self._nodes.items() if not n.children), key=lambda k: self._nodes[k].used))

    def _drop(self, key: bytes) -> None:
        node = self._nodes.pop(key)
        self.nbytes -= node.own_bytes
        self.blocks -= node.own_blocks
        if node.parent in self._nodes:
            self._nodes[node.parent].children -= 1


def beginning(base: bytes, ids: Sequence[int]) -> tuple[bytes, int]:
    """Key and length of the longest beginning that is kept of these tokens; length 0 if they are no whole stretch."""
    *_, last = (base, 0), *_keys(base, ids)
    return last


def _keys(base: bytes, ids: Sequence[int]) -> Iterator[tuple[bytes, int]]:
    """(key, end) of each beginning of whole stretches, shortest first."""
    key = base
    for end in range(STRETCH, len(ids) + 1, STRETCH):
        tokens = np.asarray(ids[end - STRETCH : end], np.int64).tobytes()
        key = hashlib.sha256(key + tokens).digest()
        yield key, end
