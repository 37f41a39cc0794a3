"""Sampling of a batch's next tokens: temperature, top-k, top-p and min-p, with noise that seeds and steps fix.

A token is the largest of logit / temperature + Gumbel noise among those that the limits leave, which is a draw from
their softmax. The noise of a token depends on its row's seed and step alone, so that a row's draws do not depend on its
neighbours, and are the same on every back end but for rounding. Knows logits; knows nothing about answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from services.llm_longctx.kernels.dispatch import Backend, choose
from services.llm_longctx.kernels.sampling import reference
from services.llm_longctx.kernels.sampling.rows import SamplingRows

__all__ = ["GREEDY_BELOW", "SamplingRows", "sample"]

GREEDY_BELOW = reference.GREEDY_BELOW
"""Temperatures below this take the largest logit."""


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
