"""Settings of a batch's rows, on the host and next to the logits. Knows nothing about how tokens are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from shared.lm.host_transfer import to_device

GREEDY_BELOW = 1e-5
"""Temperatures below this take the largest logit: dividing by them would change nothing."""


class RowSettings(NamedTuple):
    """Options with which one row is sampled.

    Attributes:
        temperature: Below `GREEDY_BELOW` the largest logit is taken.
        top_k: Tokens that stay; 0 for all.
        top_p: Of what top_k left, tokens stay while those before them hold less than this share; 1 for all.
        min_p: Least probability as a share of the largest; 0 for all.
        share: Which of the tokens that are left: from 0 on, less than 1.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    share: float = 0.0


class SamplingRows:
    """Settings of B rows.

    Attributes:
        values: float64 [5,B], in the order of `RowSettings`.
    """

    def __init__(self, values: np.ndarray, sent: Tensor | None = None) -> None:
        """Take the numbers, and the same on a device if they are there already."""
        self.values = values
        self._sent = sent

    @classmethod
    def of(cls, rows: Sequence[RowSettings]) -> Self:
        """Settings of so many rows."""
        return cls(np.array(rows, np.float64).reshape(len(rows), len(RowSettings._fields)).T.copy())

    def __len__(self) -> int:
        return int(self.values.shape[1])

    def __getitem__(self, row: int) -> SamplingRows:
        """One row, as a batch of one."""
        sent = None if self._sent is None else self._sent[:, row : row + 1]
        return SamplingRows(self.values[:, row : row + 1], sent)

    def __iter__(self) -> map[RowSettings]:
        """The rows' settings, on the host."""
        return map(RowSettings._make, self.values.T.tolist())

    def take(self, sent: Tensor) -> None:
        """Note that the numbers lie on a device: float64 [5,B]."""
        self._sent = sent

    def on(self, device: torch.device) -> Tensor:
        """The numbers on a device, float64 [5,B]; sent now, unless they are there."""
        return to_device(self.values, device) if self._sent is None else self._sent
