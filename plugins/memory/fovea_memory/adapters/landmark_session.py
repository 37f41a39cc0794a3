"""Landmark sessions of requests: which blocks each token retrieved, and checkpoints of the document that was read.

Knows sessions, blocks and the document cache; knows nothing about texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from fovea_memory.adapters.session import check_finite, read_ids
from fovea_memory.mixers.landmark import LandmarkSession
from fovea_memory.request_session import RequestSession
from fovea_memory.request_state import StoredDocument
from fovea_memory.state.document_cache import CHECKPOINT_TOKENS, DocumentCache

GRID_TOKENS = 16
"""Tokens read at a time, on an absolute grid: with its blocks a chunk stays inside the trained positions."""


@dataclass(frozen=True)
class Checkpointer:
    """Caches a document's session wherever a checkpoint is due."""

    cache: DocumentCache
    base_key: bytes
    document: StoredDocument

    def on_read(self, session: LandmarkSession, num_read: int) -> None:
        """Called when the session has read so many tokens of the request."""
        if num_read % CHECKPOINT_TOKENS:
            return
        ids = self.document.ids
        if num_read <= len(ids):
            self.cache.add(self.base_key, ids[:num_read], session)
        is_last = num_read == len(ids) // CHECKPOINT_TOKENS * CHECKPOINT_TOKENS
        if is_last and self.document.on_prefilled is not None:
            self.document.on_prefilled()


class LandmarkRequestSession(RequestSession):
    """A landmark session.

    Args:
        session: The session.
        num_read: Tokens of the request that it has read.
        prompt_tokens: Tokens of the whole prompt; votes count from its last token on.
        muted: Tokens that are never sampled.
        checkpointer: Caches the session while it reads a document.

    Attributes:
        votes: Per token of the answer and per layer the blocks that its heads retrieved.
        answer_ids: Tokens of the answer.
        loaded_blocks: Numbers of all blocks that were retrieved.
        num_retrieved: Blocks retrieved by all tokens, heads and layers.
    """

    session: LandmarkSession

    def __init__(
        self,
        session: LandmarkSession,
        num_read: int,
        prompt_tokens: int,
        muted: Sequence[int],
        checkpointer: Checkpointer | None = None,
    ) -> None:
        self.session, self.num_read = session, num_read
        self._prompt_tokens, self._muted, self.checkpointer = prompt_tokens, list(muted), checkpointer
        self.moved_before = session.moved_bytes
        self.votes: list[list[Tensor]] = []
        self.answer_ids: list[int] = []
        self.loaded_blocks: set[int] = set()
        self.num_retrieved = self.num_fetched = self.num_stored = 0

    @property
    def max_chunk(self) -> int:
        """Tokens until the next border of the grid."""
        return GRID_TOKENS - self.num_read % GRID_TOKENS

    @property
    def nbytes(self) -> int:
        return self.session.nbytes

    @property
    def dense_nbytes(self) -> int:
        return self.num_read * dense_token_bytes(self.session)

    @property
    def density(self) -> float:
        """Blocks fetched over blocks stored, mean over tokens."""
        return self.num_fetched / self.num_stored if self.num_stored else 1.0

    @property
    def moved_bytes(self) -> int:
        """Bytes of blocks that this request fetched from outside the device."""
        return self.session.moved_bytes - self.moved_before

    def feed(self, tokens: Sequence[int]) -> Tensor:
        stored = self.session.num_blocks
        output = self.session.feed(read_ids(self.session.net, tokens))
        self.answer_ids += tokens if self.num_read >= self._prompt_tokens else ()
        self.num_read += len(tokens)
        chosen = [blocks for blocks in output.blocks if blocks is not None]
        self.num_fetched += max((blocks.shape[-1] for blocks in chosen), default=0) * len(tokens)
        self.num_stored += stored * len(tokens)
        self.num_retrieved += sum(blocks.numel() for blocks in chosen)
        for blocks in chosen:
            self.loaded_blocks.update(torch.unique(blocks).tolist())
        if self.num_read >= self._prompt_tokens:
            last = int(output.is_token.nonzero()[-1])
            # In the first layer all landmarks have the same key: its choice says nothing but how old blocks are.
            later = [blocks for blocks in output.blocks[1:] if blocks is not None]
            self.votes.append([blocks[:, :, min(last, blocks.shape[2] - 1)][:, :, None] for blocks in later])
        if self.checkpointer is not None:
            self.checkpointer.on_read(self.session, self.num_read)
        logits = check_finite(output.logits[0])
        for token in self._muted:
            logits[:, token] = -torch.inf
        return logits

    def fork(self) -> Self:
        """An independent copy, which makes no checkpoints."""
        twin = super().fork()
        twin.votes, twin.answer_ids = list(self.votes), list(self.answer_ids)
        twin.loaded_blocks, twin.checkpointer = set(self.loaded_blocks), None
        twin.moved_before = twin.session.moved_bytes
        return twin


def dense_token_bytes(session: LandmarkSession) -> int:
    """Bytes of one token's keys and values in every layer, in float32."""
    width: int = session.net.embed(read_ids(session.net, [0])).shape[-1]
    return 8 * width * len(session.net.layers)
