"""Reads prompts one after another and keeps what the next one begins with: the cells of one haystack share its text.

Prompts are read on a grid of blocks, and only whole blocks are kept: each was made by the very operations that would
make it again, so no result depends on what was read before. Where a row of a product does not depend on other rows,
blocks are multiplied together and only attend one by one. Knows token ids and the cache; nothing about answers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from services.interpretability.attention.pattern_capture import RowCapturingAttention, RowVisitor
from services.interpretability.core.studied_model import StudiedModel
from shared.lm.attention import DenseAttention, sdpa

__all__ = ["BLOCK_TOKENS", "PrefixReader", "plan_pieces"]

BLOCK_TOKENS = 64
"""Tokens of a block: enough for matrix products to run at full speed, and few enough to share nearly all."""


def plan_pieces(before: Sequence[int], ids: Sequence[int], rows: int, *, together: bool = False) -> list[range]:
    """In which pieces a text is read after another one: whole blocks, then a tail that holds the last `rows` tokens.

    Args:
        before: Tokens whose blocks are known; a last block that is not whole is not used.
        ids: Tokens of the text, its `rows` included.
        rows: Tokens that must be read together at the end; at least one.
        together: All blocks that are not known are one piece.
    """
    tail = (len(ids) - rows) // BLOCK_TOKENS * BLOCK_TOKENS
    known = 0
    while known < tail and list(before[known : known + BLOCK_TOKENS]) == list(ids[known : known + BLOCK_TOKENS]):
        known += BLOCK_TOKENS
    step = max(tail - known, 1) if together else BLOCK_TOKENS
    return [*(range(at, at + step) for at in range(known, tail, step)), range(tail, len(ids))]


class PrefixReader:
    """One reader of one model. Not for several threads."""

    def __init__(self, subject: StudiedModel) -> None:
        self.subject = subject
        self._cache = subject.model.new_cache()
        self._known: list[int] = []

    @torch.no_grad()
    def read(self, ids: Sequence[int], rows: int, visit: RowVisitor) -> Tensor:
        """Read a text and show the pattern rows of its last `rows` tokens: their logits [1,rows,V]."""
        subject, model, ops = self.subject, self.subject.model, self.subject.ops
        windows = model.config.windows
        *blocks, tail = plan_pieces(self._known, ids, rows, together=subject.rows_are_independent)
        self._known = list(ids[: tail.start])
        self._cache.length = (blocks or [tail])[0].start
        attend = _BlockwiseAttention(self._cache, windows=windows)
        for block in blocks:
            model(subject.tensor([ids[block.start : block.stop]]), cache=self._cache, attend=attend, keep=0, ops=ops)
        watching = RowCapturingAttention(visit, since=len(ids) - rows, cache=self._cache, windows=windows)
        last = subject.tensor([ids[tail.start :]])
        logits: Tensor = model(last, cache=self._cache, attend=watching, keep=rows, ops=ops)
        return logits


class _BlockwiseAttention(DenseAttention):
    """Attention of many tokens as if each block had come alone."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, offset: int) -> Tensor:
        keys, values = self.remember(layer, k, v, offset)
        found = []
        for start in range(0, q.shape[1], BLOCK_TOKENS):
            seen = offset + start + BLOCK_TOKENS
            found.append(
                sdpa(
                    q[:, start : start + BLOCK_TOKENS],
                    keys[:, :, :seen],
                    values[:, :, :seen],
                    window=self.window(layer),
                )
            )
        return torch.cat(found, 1)
