"""Reader of many prompts that shares their common prefixes: cells of one haystack read its text once.

Prompts are read in blocks on a fixed grid, and only whole blocks are kept: each was computed by the very operations
that would compute it again, so no result depends on what was read before. Where a row of a product does not depend on
other rows, blocks are multiplied together and only attend one by one. Knows token ids and the cache; nothing about
answers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from services.interpretability.attention.pattern_capture import AttentionRowCallback, RowCapturingAttention
from services.interpretability.core.studied_model import StudiedModel
from shared.lm.attention import DenseAttention, sdpa

BLOCK_TOKENS = 64
"""Tokens of a block: enough for matrix products to run at full speed, and few enough to share nearly all."""


def plan_pieces(before: Sequence[int], ids: Sequence[int], rows: int, *, together: bool = False) -> list[range]:
    """Split a text into the pieces that are read after another: whole blocks, then a tail with the last `rows` tokens.

    Of `before` whole blocks are cached; `together` reads all blocks that are not as one piece.
    """
    tail = (len(ids) - rows) // BLOCK_TOKENS * BLOCK_TOKENS
    shared = 0
    while shared < tail and list(before[shared : shared + BLOCK_TOKENS]) == list(ids[shared : shared + BLOCK_TOKENS]):
        shared += BLOCK_TOKENS
    step = max(tail - shared, 1) if together else BLOCK_TOKENS
    return [*(range(start, start + step) for start in range(shared, tail, step)), range(tail, len(ids))]


class PrefixReader:
    """Reader of one model. Not thread-safe."""

    def __init__(self, subject: StudiedModel) -> None:
        self.subject = subject
        self._cache = subject.model.new_cache()
        self._cached_ids: list[int] = []

    @torch.no_grad()
    def read(self, ids: Sequence[int], rows: int, visit: AttentionRowCallback) -> Tensor:
        """Read a text, visit the pattern rows of its last `rows` tokens and return their logits [1,rows,V]."""
        subject, model, ops = self.subject, self.subject.model, self.subject.ops
        windows = model.config.windows
        *blocks, tail = plan_pieces(self._cached_ids, ids, rows, together=subject.rows_are_independent)
        self._cached_ids = list(ids[: tail.start])
        self._cache.length = (blocks or [tail])[0].start
        attend = _BlockwiseAttention(self._cache, windows=windows)
        for block in blocks:
            model(subject.tensor([ids[block.start : block.stop]]), cache=self._cache, attend=attend, keep=0, ops=ops)
        capturing = RowCapturingAttention(visit, since=len(ids) - rows, cache=self._cache, windows=windows)
        last = subject.tensor([ids[tail.start :]])
        logits: Tensor = model(last, cache=self._cache, attend=capturing, keep=rows, ops=ops)
        return logits


class _BlockwiseAttention(DenseAttention):
    """Attention of many tokens as if each block had come alone."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, offset: int) -> Tensor:
        keys, values = self.remember(layer, k, v, offset)
        window = self.window(layer)
        mixed = []
        for start in range(0, q.shape[1], BLOCK_TOKENS):
            end = offset + start + BLOCK_TOKENS
            mixed.append(sdpa(q[:, start : start + BLOCK_TOKENS], keys[:, :, :end], values[:, :, :end], window=window))
        return torch.cat(mixed, 1)
