"""Merge of attention parts by their log-sum-exp: outputs over disjoint keys become the output over all of them.

What makes methods compose: far and near blocks, pages and compact copies, kept entries and a virtual one are parts of
the same row. Knows nothing about where parts come from.
"""

import torch
from torch import Tensor

from services.llm_longctx.kernels.dispatch import choose

__all__ = ["merge"]


def merge(*parts: tuple[Tensor, Tensor], backend: str = "auto") -> tuple[Tensor, Tensor]:
    """Join (out [..., d], lse [...]) parts over disjoint keys into the (out, lse) of all keys.

    A part that saw nothing has lse −inf and out 0; a row whose parts all are so stays so.

    Args:
        parts: They are one launch on a GPU, and on a CPU torch's, whatever `auto` is elsewhere.
        backend: `auto` or a name of `backends()`.

    Raises:
        ValueError: No part is given.
        NotReady: The named back end is not there or can't take these tensors.
    """
    if not parts:
        raise ValueError("a merge needs one part or more")
    if len(parts) == 1:
        return parts[0]
    q = parts[0][0]
    plain = backend == "auto" and q.device.type == "cpu"
    if not plain and choose("merge", backend, q.dtype, q.device.type) == "triton":
        from services.llm_longctx.kernels.merge_lse import triton  # noqa: PLC0415  # may not be installed

        return triton.merge(parts)
    logs = torch.stack([lse for _, lse in parts])
    lse = torch.logsumexp(logs, 0)
    # −inf − −inf is no number: against an empty row all shares are zero.
    shares = torch.exp(logs - torch.where(lse.isneginf(), torch.zeros_like(lse), lse))
    out = torch.zeros_like(parts[0][0], dtype=lse.dtype)
    for (part, _), share in zip(parts, shares, strict=True):
        out = out + part.to(lse.dtype) * share[..., None]
    return out.to(parts[0][0].dtype), lse
