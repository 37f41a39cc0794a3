"""Attention of a prompt's last queries, summed per key and per distance. One file per back end."""

from collections.abc import Callable, Mapping

from torch import Tensor

from services.llm_longctx.kernels.dispatch import Backend, choose
from services.llm_longctx.kernels.last_query_scores import cpu_ext, cpu_torch, reference

__all__ = ["last_query_scores"]


def _triton(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    from services.llm_longctx.kernels.last_query_scores import triton  # noqa: PLC0415  # may not be installed

    return triton.last_query_scores(q, k)


_RUN: Mapping[Backend, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "reference": reference.last_query_scores,
    "cpu_torch": cpu_torch.last_query_scores,
    "cpu_ext": cpu_ext.last_query_scores,
    "triton": _triton,
}


def last_query_scores(q: Tensor, k: Tensor, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """Sums of the causal softmax rows of the last queries, scale 1/sqrt(d).

    Args:
        q: The last b of N queries [H,b,d].
        k: All keys [G,N,d]; query head h reads kv head h // (H // G).
        backend: `auto` or a name of `backends()`.

    Returns:
        Attention per key [H,N], and per distance from query back to key [H,N], in float32 or wider; each sums to b.

    Raises:
        ValueError: The shapes don't fit each other.
        NotReady: The named back end is not there or can't take these tensors.
    """
    if q.dim() != 3 or k.dim() != 3 or q.shape[2] != k.shape[2] or q.shape[0] % max(len(k), 1) or q.dtype != k.dtype:
        message = f"queries [H,b,d] go with keys [G,N,d] of their dtype, not {list(q.shape)} with {list(k.shape)}"
        raise ValueError(message)
    if not 0 < q.shape[1] <= k.shape[1]:
        raise ValueError(f"the last b of N queries are 1 … N, not {q.shape[1]} of {k.shape[1]}")
    return _RUN[choose("last_query_scores", backend, q.dtype, q.device.type)](q, k)
