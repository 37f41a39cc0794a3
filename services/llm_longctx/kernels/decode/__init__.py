"""Ragged decode attention: R problems of G query rows each, over any number of cached entries.

A problem is one (sequence, layer, kv head), its rows the query heads of the group. Entries come as tensors, as runs of
consecutive rows of a pool's stores, or as pages. One file per back end; `reference` is the oracle.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from services.llm_longctx.kernels.decode import cpu_ext, cpu_torch, reference
from services.llm_longctx.kernels.decode.device_runs import DeviceRuns
from services.llm_longctx.kernels.decode.pages import PageTable
from services.llm_longctx.kernels.dispatch import Backend, choose
from services.llm_longctx.kernels.packed_pages.layout import PAGE, PackedLayout
from services.llm_longctx.kernels.packed_pages.reference import unpack

__all__ = [
    "DeviceRuns", "PageTable", "decode", "decode_device_runs", "decode_packed", "decode_packed_device_runs",
    "decode_pages", "decode_runs",
]  # fmt: skip


def _triton(
    q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], log_weights: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor]:
    from services.llm_longctx.kernels.decode import triton  # noqa: PLC0415  # may not be installed

    return triton.decode(q, keys, values, log_weights)


_RUN: Mapping[
    Backend, Callable[[Tensor, Sequence[Tensor], Sequence[Tensor], Sequence[Tensor | None]], tuple[Tensor, Tensor]]
] = {"reference": reference.decode, "cpu_torch": cpu_torch.decode, "cpu_ext": cpu_ext.decode, "triton": _triton}


def decode(
    q: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    *,
    log_weights: Sequence[Tensor | None] | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Attention over entries that lie in one tensor per problem.

    Args:
        q: [R,G,d]; scale 1/sqrt(d).
        keys: R tensors [n_r,d], n_r ≥ 0.
        values: R tensors [n_r,d].
        log_weights: Per problem None or [n_r], added to the scaled scores; −inf hides an entry.
        backend: `auto` or a name of `backends()`.

    Returns:
        out [R,G,d] in q's dtype (`reference`: float64) and natural-log lse [R,G] in float32 or wider; a problem without
        entries has out 0 and lse −inf.

    Raises:
        ValueError: The shapes don't fit each other.
        NotReady: The named back end is not there or can't take these tensors.
    """
    weights = [None] * len(keys) if log_weights is None else log_weights
    _check(q, keys, values, weights)
    return _RUN[choose("decode", backend, q.dtype, q.device.type)](q, keys, values, weights)


def decode_runs(
    q: Tensor,
    stores: tuple[Tensor, Tensor, Tensor],
    start: np.ndarray,
    n: np.ndarray,
    weighted: np.ndarray,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`decode` over entries that lie side by side in stores of many: no views are made where the kernel needs none.

    Args:
        q: [R,G,d].
        stores: Keys and values [entries,d] and log-weights [entries].
        start: First entry of each problem [R] int64.
        n: Its entries [R] int64.
        weighted: Whether its log-weights count [R] bool.
        backend: As in `decode`.

    Raises:
        NotReady: The named back end is not there or can't take these tensors.
    """
    if (chosen := choose("decode", backend, q.dtype, q.device.type)) == "cpu_ext":
        return cpu_ext.decode_runs(q, stores, start, n, weighted)
    at = [slice(first, first + many) for first, many in zip(start.tolist(), n.tolist(), strict=True)]
    keys, values = ([store[one] for one in at] for store in stores[:2])
    return _RUN[chosen](q, keys, values, [stores[2][one] if w else None for one, w in zip(at, weighted, strict=True)])


def decode_device_runs(
    q: Tensor, stores: tuple[Tensor, Tensor, Tensor], runs: DeviceRuns, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """`decode_runs` whose numbers lie on the device: a launch of fixed shape, without a copy to or from the host.

    Args:
        q: [R,G,d].
        stores: Keys and values [entries,d] and log-weights [entries] in float32.
        runs: Where each problem's entries lie.
        backend: As in `decode`; other back ends than `triton` read the numbers first.

    Raises:
        NotReady: The named back end is not there or can't take these tensors.
    """
    if (chosen := choose("decode", backend, q.dtype, q.device.type)) == "triton":
        from services.llm_longctx.kernels.decode import triton  # noqa: PLC0415  # see `_triton`

        return triton.decode_device_runs(q, stores, runs)
    start, n, weighted = (x.cpu().numpy() for x in (runs.start, runs.n, runs.weighted))
    return decode_runs(q, stores, start, n, weighted, backend=chosen)


def decode_packed(
    q: Tensor,
    packed: tuple[PackedLayout, Tensor, Tensor],
    start: np.ndarray,
    n: np.ndarray,
    weighted: np.ndarray,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`decode` over runs of packed entries, which C++ and Triton read as they lie and other back ends widen.

    Args:
        q: [R,G,d].
        packed: Layout, pages [pages,bytes] uint8 and log-weights [pages·16].
        start: First entry of each problem [R] int64, in the middle of a page or not.
        n: Its entries [R] int64.
        weighted: Whether its log-weights count [R] bool.
        backend: As in `decode`.

    Raises:
        NotReady: The named back end is not there or can't take these tensors.
    """
    layout, pages, log_weights = packed
    if (chosen := choose("decode", backend, q.dtype, q.device.type)) == "cpu_ext":
        return cpu_ext.decode_packed(q, packed, start, n, weighted)
    if chosen == "triton":
        first, many, counts = (torch.from_numpy(np.ascontiguousarray(x)).to(q.device) for x in (start, n, weighted))
        runs = DeviceRuns(first, many, counts, longest=int(n.max(initial=0)), any_weighted=bool(weighted.any()))
        return decode_packed_device_runs(q, packed, runs, backend=chosen)
    wide = torch.float32 if chosen == "reference" else q.dtype
    keys, values, weights = [], [], []
    for first, many, counts in zip(start.tolist(), n.tolist(), weighted.tolist(), strict=True):
        k, v = unpack(layout, pages[first // PAGE : -(-(first + many) // PAGE)])
        skip = first % PAGE
        keys.append(k.flatten(0, 1)[skip : skip + many].to(wide))
        values.append(v.flatten(0, 1)[skip : skip + many].to(wide))
        weights.append(log_weights[first : first + many] if counts else None)
    return _RUN[chosen](q, keys, values, weights)


def decode_packed_device_runs(
    q: Tensor, packed: tuple[PackedLayout, Tensor, Tensor], runs: DeviceRuns, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """`decode_packed` whose numbers lie on the device; see `decode_device_runs`.

    Raises NotReady: the named back end is not there or can't take these tensors.
    """
    if (chosen := choose("decode", backend, q.dtype, q.device.type)) == "triton":
        from services.llm_longctx.kernels.packed_pages import triton  # noqa: PLC0415  # see `_triton`

        return triton.decode_packed(q, packed, runs)
    start, n, weighted = (x.cpu().numpy() for x in (runs.start, runs.n, runs.weighted))
    return decode_packed(q, packed, start, n, weighted, backend=chosen)


def decode_pages(
    q: Tensor,
    pool: Tensor,
    pages: PageTable,
    *,
    log_weights: Sequence[Tensor | None] | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`decode` over entries that lie in pages of a pool [pages,2,P,d] (keys, then values).

    Raises ValueError: the shapes don't fit each other; NotReady: the named back end is not there or can't take these
    tensors.
    """
    # The kernel looks pages up by tiles; tiles are powers of two.
    if choose("decode", backend, q.dtype, q.device.type) == "triton" and pool.shape[2].bit_count() == 1:
        from services.llm_longctx.kernels.decode import triton  # noqa: PLC0415  # see `_triton`

        return triton.decode_pages(q, pool, pages, log_weights or [None] * len(pages.lengths))
    keys, values = pages.entries(pool)
    return decode(q, keys, values, log_weights=log_weights, backend=backend)


def _check(q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], log_weights: Sequence[Tensor | None]) -> None:
    if q.dim() != 3 or not len(q) == len(keys) == len(values) == len(log_weights):
        message = (
            f"queries are [R,G,d] with R keys, values and log-weights; q is {list(q.shape)}, with {len(keys)} keys, "
            f"{len(values)} values and {len(log_weights)} log-weights"
        )
        raise ValueError(message)
    for r, (k, v, weights) in enumerate(zip(keys, values, log_weights, strict=True)):
        if k.dim() != 2 or k.shape != v.shape or k.shape[1] != q.shape[2] or not q.dtype == k.dtype == v.dtype:
            message = f"problem {r}: keys {list(k.shape)} and values {list(v.shape)} don't go with q {list(q.shape)}"
            raise ValueError(message)
        if weights is not None and weights.shape != (len(k),):
            raise ValueError(f"problem {r}: {len(k)} entries have log-weights of shape {list(weights.shape)}")
