"""Sink-and-window prefill: each query reads the first entries and a window that ends at it. One file per back end."""

from collections.abc import Callable, Mapping

from torch import Tensor

from services.llm_longctx.kernels.dispatch import Backend, choose
from services.llm_longctx.kernels.window_prefill import cpu_ext, cpu_torch, reference

__all__ = ["window_prefill"]


def _triton(q: Tensor, k: Tensor, v: Tensor, sink: int, window: int) -> tuple[Tensor, Tensor]:
    from services.llm_longctx.kernels.window_prefill import triton  # noqa: PLC0415  # may not be installed

    return triton.prefill(q, k, v, sink, window)


_RUN: Mapping[Backend, Callable[[Tensor, Tensor, Tensor, int, int], tuple[Tensor, Tensor]]] = {
    "reference": reference.prefill,
    "cpu_torch": cpu_torch.prefill,
    "cpu_ext": cpu_ext.prefill,
    "triton": _triton,
}


def window_prefill(
    q: Tensor, k: Tensor, v: Tensor, sink: int, window: int, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Entry i, one of the last T of N, reads entries j ≤ i with j < sink or i − j < window; scale 1/sqrt(d).

    Args:
        q: Queries of the last T entries [H,T,d].
        k: Keys [G,N,d]; query head h reads kv head h // (H // G).
        v: Values [G,N,d].
        sink: Entries from the first on that everybody sees.
        window: Entries up to its own that each query sees, 1 or more.
        backend: `auto` or a name of `backends()`.

    Returns:
        out [H,T,d] in q's dtype (`reference`: float64), and natural-log lse [H,T] in float32 or wider.

    Raises:
        ValueError: The shapes don't fit each other, or the window is empty.
        NotReady: The named back end is not there or can't take these tensors.
    """
    fits = q.dim() == k.dim() == 3 and k.shape == v.shape and q.shape[2] == k.shape[2] and not q.shape[0] % len(k)
    if not fits or not 0 < q.shape[1] <= k.shape[1] or window < 1 or sink < 0:
        message = (
            f"queries [H,T,d] go with keys and values [G,N,d], T ≤ N, and a window of 1 or more; q is {list(q.shape)}, "
            f"k {list(k.shape)}, v {list(v.shape)}, sink {sink}, window {window}"
        )
        raise ValueError(message)
    return _RUN[choose("window_prefill", backend, q.dtype, q.device.type)](q, k, v, sink, window)
