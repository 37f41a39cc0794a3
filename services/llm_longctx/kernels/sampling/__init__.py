"""Sampling of a batch's next tokens: temperature, top-k, top-p and min-p, with noise that seeds and steps fix.

A token is the largest of logit / temperature + Gumbel noise among those that the limits leave, which is a draw from
their softmax. The noise of a token depends on its row's seed and step alone, so that a row's draws do not depend on its
neighbours, and are the same on every back end but for rounding. Knows logits; knows nothing about answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from services.llm_longctx.kernels.dispatch import Backend, choose
from services.llm_longctx.kernels.sampling import reference

__all__ = ["GREEDY_BELOW", "SamplingRows", "sample"]

GREEDY_BELOW = reference.GREEDY_BELOW
"""Temperatures below this take the largest logit."""


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
        same = [torch.full((len(seeds),), value, dtype=dtype, device=device) for value, dtype in values]
        steps = torch.full((len(seeds),), step, dtype=torch.int32, device=device)
        return cls(*same, torch.tensor(seeds, dtype=torch.int64, device=device), steps)


def _triton(logits: Tensor, rows: SamplingRows) -> Tensor:
    from services.llm_longctx.kernels.sampling import triton  # noqa: PLC0415  # may not be installed

    return triton.sample(logits, rows)


def _plain(logits: Tensor, rows: SamplingRows) -> Tensor:
    limits = rows.temperature, rows.top_k, rows.top_p, rows.min_p, rows.seed, rows.step
    return reference.sample(logits, *limits)


_RUN: Mapping[Backend, Callable[[Tensor, SamplingRows], Tensor]] = {
    "reference": _plain,
    "cpu_torch": _plain,
    "cpu_ext": _plain,
    "triton": _triton,
}


def sample(logits: Tensor, rows: SamplingRows, *, backend: str = "auto") -> Tensor:
    """Draw a token per row of logits [B,V]: [B] int64.

    Of equal logits, the one with the lower number comes first.

    Raises:
        ValueError: The shapes don't fit each other.
        NotReady: The named back end is not there or can't take these tensors.
    """
    if logits.dim() != 2 or any(x.shape != logits.shape[:1] for x in (rows.temperature, rows.seed, rows.step)):
        message = f"logits are [B,V] with settings [B], not {list(logits.shape)} with {list(rows.temperature.shape)}"
        raise ValueError(message)
    return _RUN[choose("sample", backend, logits.dtype, logits.device.type)](logits, rows)
