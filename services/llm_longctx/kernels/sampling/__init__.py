"""Sampling of a batch's next tokens: temperature, top-k, top-p and min-p, each row by one number of its own.

A token is the first at which the mass of the tokens that the limits leave, in the order of the vocabulary, exceeds the
row's share of all of it. The share comes from the caller, so a row's token does not depend on its neighbours and is the
same on every back end but for rounding. Knows logits; knows nothing about answers.
"""

from collections.abc import Callable, Mapping

from torch import Tensor

from services.llm_longctx.kernels.dispatch import Backend, choose
from services.llm_longctx.kernels.sampling import cpu_torch, reference
from services.llm_longctx.kernels.sampling.rows import GREEDY_BELOW, RowSettings, SamplingRows

__all__ = ["GREEDY_BELOW", "RowSettings", "SamplingRows", "sample"]


def _triton(logits: Tensor, rows: SamplingRows) -> Tensor:
    from services.llm_longctx.kernels.sampling import triton  # noqa: PLC0415  # may not be installed

    return triton.sample(logits, rows)


_RUN: Mapping[Backend, Callable[[Tensor, SamplingRows], Tensor]] = {
    "reference": reference.sample,
    "cpu_torch": cpu_torch.sample,
    "cpu_ext": cpu_torch.sample,
    "triton": _triton,
}


def sample(logits: Tensor, rows: SamplingRows, *, backend: str = "auto") -> Tensor:
    """Draw a token per row of logits [B,V]: [B] int64, where the logits lie.

    Of equal logits, the one with the lower number comes first. Raises ValueError: the shapes don't fit each other;
    NotReady: the named back end is not there or can't take these tensors.
    """
    if logits.dim() != 2 or len(logits) != len(rows):
        message = f"logits are [B,V] with settings for B rows, not {list(logits.shape)} with settings for {len(rows)}"
        raise ValueError(message)
    return _RUN[choose("sample", backend, logits.dtype, logits.device.type)](logits, rows)
