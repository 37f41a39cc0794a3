"""Block-sparse prefill: causal attention over chosen blocks of keys. One file per back end, `reference` the oracle."""

from collections.abc import Callable, Mapping
from typing import Literal, overload

from torch import Tensor

from services.llm_longctx.kernels.block_csr import BlockCsr
from services.llm_longctx.kernels.block_sparse_prefill import cpu_ext, cpu_torch, reference
from services.llm_longctx.kernels.dispatch import Backend, choose

__all__ = ["block_sparse_prefill"]


def _triton(q: Tensor, k: Tensor, v: Tensor, blocks: BlockCsr) -> tuple[Tensor, Tensor]:
    from services.llm_longctx.kernels.block_sparse_prefill import triton  # noqa: PLC0415  # may not be installed

    return triton.prefill(q, k, v, blocks)


_RUN: Mapping[Backend, Callable[[Tensor, Tensor, Tensor, BlockCsr], tuple[Tensor, Tensor]]] = {
    "reference": reference.prefill,
    "cpu_torch": cpu_torch.prefill,
    "cpu_ext": cpu_ext.prefill,
    "triton": _triton,
}


@overload
def block_sparse_prefill(
    q: Tensor, k: Tensor, v: Tensor, blocks: BlockCsr, *, backend: str = ..., return_lse: Literal[False] = ...
) -> Tensor: ...
@overload
def block_sparse_prefill(
    q: Tensor, k: Tensor, v: Tensor, blocks: BlockCsr, *, backend: str = ..., return_lse: Literal[True]
) -> tuple[Tensor, Tensor]: ...
def block_sparse_prefill(
    q: Tensor, k: Tensor, v: Tensor, blocks: BlockCsr, *, backend: str = "auto", return_lse: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of each query over the kept blocks, token-causal inside them, scale 1/sqrt(d).

    Args:
        q: Queries [Hq,T,d] of the last T of N positions (T = N: a whole prompt).
        k: Keys [Hkv,N,d]; query head h reads kv head h // (Hq // Hkv).
        v: Values [Hkv,N,d].
        blocks: Kept blocks per kv head or per query head; `first` is the block in which the first query lies.
        backend: `auto` or a name of `backends()`.
        return_lse: Also return the natural-log sum of exponentials of each row.

    Returns:
        out [Hq,T,d] in q's dtype (`reference`: float64), and with `return_lse` lse [Hq,T] in float32 or wider. A query
        that sees nothing has out 0 and lse −inf.

    Raises:
        ValueError: The shapes don't fit each other.
        NotReady: The named back end is not there or can't take these tensors.
    """
    _check(q, k, v, blocks)
    run = _RUN[choose("block_sparse_prefill", backend, q.dtype, q.device.type)]
    out, lse = run(q, k, v, blocks)
    return (out, lse) if return_lse else out


def _check(q: Tensor, k: Tensor, v: Tensor, blocks: BlockCsr) -> None:
    fits = (
        q.dim() == k.dim() == 3
        and k.shape == v.shape
        and k.shape[0] > 0
        and q.shape[0] % k.shape[0] == 0
        and q.shape[2] == k.shape[2]
        and 0 < q.shape[1] <= k.shape[1]
        and q.dtype == k.dtype == v.dtype
    )
    if not fits or blocks.heads not in {q.shape[0], k.shape[0]}:
        shapes = f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}, blocks of {blocks.heads} heads"
        message = f"queries [Hq,T,d] go with keys and values [Hkv,N,d], T ≤ N, and blocks of Hq or Hkv heads; {shapes}"
        raise ValueError(message)
    begin = k.shape[1] - q.shape[1]
    rows = -(-k.shape[1] // blocks.block) - blocks.first
    if begin // blocks.block != blocks.first or rows != blocks.rows:
        message = (
            f"queries {begin} … {k.shape[1] - 1} are rows of blocks {begin // blocks.block} … of {blocks.block}; "
            f"the blocks begin at {blocks.first} and have {blocks.rows} rows"
        )
        raise ValueError(message)
