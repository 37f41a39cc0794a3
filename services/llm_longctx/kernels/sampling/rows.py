"""Settings of a batch's rows, as tensors beside the logits. Knows nothing about how tokens are drawn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, slots=True)
class SamplingRows:
    """What each row of a batch is sampled with, as tensors [B] beside the logits.

    Attributes:
        temperature: float32; below `GREEDY_BELOW` the largest logit is taken.
        top_k: int32, tokens that stay; 0 for all.
        top_p: float32, tokens stay while those before them hold less than this; 1 for all.
        min_p: float32, least probability as a share of the largest; 0 for all.
        seed: int64.
        step: int32, how many tokens the row has drawn.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    seed: Tensor
    step: Tensor

    @classmethod
    def of(
        cls,
        seeds: list[int],
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        step: int = 0,
        device: str | torch.device = "cpu",
    ) -> SamplingRows:
        """Rows that differ in their seeds only."""
        values = (temperature, torch.float32), (top_k, torch.int32), (top_p, torch.float32), (min_p, torch.float32)
        heat, k, p, least = (torch.full((len(seeds),), value, dtype=kind, device=device) for value, kind in values)
        steps = torch.full((len(seeds),), step, dtype=torch.int32, device=device)
        return cls(heat, k, p, least, torch.tensor(seeds, dtype=torch.int64, device=device), steps)
