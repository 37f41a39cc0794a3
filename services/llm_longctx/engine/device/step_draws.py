"""Draws of a decode step on a device: settings go there with the step's other numbers, tokens come back in one read.

Knows rows of logits and their settings; knows nothing about answers, penalties or grammars.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from services.llm_longctx.kernels import RowSettings, SamplingRows, sample
from shared.lm.host_transfer import to_host


class Choice(NamedTuple):
    """A token that was chosen and not read yet: float64 words [begin:begin+size] of a tensor; several may share it."""

    words: Tensor
    begin: int
    size: int


class DrawnRow(NamedTuple):
    """A row of a step's logits, and the token that was drawn from it as it is.

    Attributes:
        logits: [V], in the model's type.
        settings: Its sampling settings, on the device: for a draw from changed logits.
        choice: The token.
        backend: Of the kernels.
    """

    logits: Tensor
    settings: SamplingRows
    choice: Choice
    backend: str


class StepDraws:
    """The draws of one step: of B rows, in the order of its tokens."""

    def __init__(self, settings: Sequence[RowSettings], backend: str) -> None:
        self.rows = SamplingRows.of(settings)
        self._backend = backend
        self._logits: tuple[Tensor, ...]
        self._tokens: Tensor

    def words(self) -> np.ndarray:
        """Sent values: the settings, as int64 numbers of the same bits."""
        return self.rows.values.view(np.int64)

    def take(self, sent: Tensor) -> int:
        """Find the settings at the front of what was sent; returns their length."""
        size = int(self.rows.values.size)
        self.rows.take(sent[:size].view(torch.float64).view(self.rows.values.shape))
        return size

    def draw(self, logits: Tensor) -> None:
        """Draw a token for each row of logits [B,V]."""
        self.adopt(logits, sample(logits, self.rows, backend=self._backend).double())

    def adopt(self, logits: Tensor, tokens: Tensor) -> None:
        """Take tokens float64 [B] that were drawn from logits [B,V] with these settings."""
        self._logits, self._tokens = logits.unbind(), tokens

    def row(self, b: int) -> DrawnRow:
        """One row, once the step was drawn."""
        return DrawnRow(self._logits[b], self.rows[b], Choice(self._tokens, b, 1), self._backend)


def read_choices(choices: Sequence[Choice]) -> list[list[float]]:
    """Read what several samplers chose, all of it at once."""
    if not choices:
        return []
    parts = {id(one.words): one.words for one in choices}
    offsets, end = {}, 0
    for key, words in parts.items():
        offsets[key], end = end, end + len(words)
    read = to_host(torch.cat(list(parts.values())) if len(parts) > 1 else choices[0].words).tolist()
    begins = [offsets[id(one.words)] + one.begin for one in choices]
    return [read[begin : begin + one.size] for begin, one in zip(begins, choices, strict=True)]
