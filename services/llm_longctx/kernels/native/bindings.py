"""ctypes bindings of the C++ library: loaded once, or the reason why there is none. Knows pointers, not their use."""

import ctypes
import math
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from services.llm_longctx.kernels.native.isa_targets import library_file, runnable_targets

_INT, _LONG, _REAL, _AT = ctypes.c_int, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
_TAKES = {
    "fovea_block_sparse_prefill": (_INT, _AT, _AT, _AT, _AT, _AT, _AT, _AT, _AT, _AT, _INT),
    "fovea_decode": (_INT, _AT, _AT, _AT, _AT, _AT, _INT),
    "fovea_decode_packed": (_INT, _INT, _AT, _AT, _AT, _AT, _AT, _AT, _AT, _AT, _AT, _INT),
    "fovea_pack_pages": (_INT, _INT, _AT, _AT, _AT, _AT, _AT, _AT, _INT, _INT, _INT),
    "fovea_unpack_pages": (_INT, _INT, _AT, _AT, _INT, _INT, _AT, _AT, _INT),
    "fovea_last_query_scores": (_INT, _AT, _AT, _AT, _AT, _AT, _AT, _INT),
    "fovea_multiply": (_INT, _AT, _AT, _INT, _INT, _INT, _AT, _REAL, _REAL, _INT, _INT, _INT),
    "fovea_norm": (_INT, _INT, _AT, _AT, _AT, _LONG, _INT, _REAL, _REAL, _INT),
    "fovea_rotate": (_INT, _AT, _AT, _AT, _AT, _AT, _AT, _LONG, _INT, _INT, _INT, _INT),
    "fovea_gate": (_INT, _AT, _AT, _AT, _LONG, _INT),
    "fovea_multiply_packed": (_INT, _INT, _AT, _AT, _INT, _INT, _INT, _AT, _REAL, _REAL, _INT, _INT, _INT),
    "fovea_decoder_new": (_AT, _AT, _AT),
    "fovea_decoder_delete": (_AT,),
    "fovea_decoder_buffers": (_INT, _AT, _AT),
    "fovea_decode_step": (_INT, _AT, _AT, _INT, _INT, _INT),
}


@cache
def load_library() -> tuple[ctypes.CDLL | None, str]:
    """Load the best library that this processor can run: it and its level, or None and the reason."""
    levels = runnable_targets(_processor())
    if not levels:
        return None, "no level of instructions fits this processor"
    why = "it is not built"
    for target in levels:
        if (file := library_file(target)).exists():
            try:
                return open_library(file), target.name
            except OSError as error:
                why = f"it can't be loaded: {error}"
    return None, why


def open_library(file: Path) -> ctypes.CDLL:
    """Load one library and declare its functions, so that addresses go in as plain numbers.

    Raises OSError: it is not a library, or the system does not let this process run it.
    """
    library = ctypes.CDLL(str(file))
    if not library.fovea_may_run():
        raise OSError(f"the system does not let this process use the instructions of {file.name}")
    for name, takes in _TAKES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = takes, _AT if name == "fovea_decoder_new" else None
    return library


def explain_absence() -> str:
    """Why there are no C++ kernels; empty where there are."""
    library, reason = load_library()
    return "" if library is not None else reason


def describe() -> tuple[Literal["good", "note"], str]:
    """Verdict and line for `fovea doctor`."""
    library, level = load_library()
    if library is not None:
        return "good", f"C++ for {level}"
    return "note", f"no C++ ({level}); attention runs on torch's own kernels. Try: fovea build-kernels"


def has_tiles() -> bool:
    """Whether the loaded library multiplies many bfloat16 rows in tiles (AMX)."""
    library, _ = load_library()
    return library is not None and bool(library.fovea_has_tiles())


def block_sparse_prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    strides: Sequence[int],
    out: Tensor,
    lse: Tensor,
    row_ptr: Tensor,
    cols: Tensor,
    sizes: Sequence[int],
) -> None:
    """Fill `out` and `lse`; strides and sizes in the order of the C++ function."""
    _library().fovea_block_sparse_prefill(
        q.dtype == torch.bfloat16, q.data_ptr(), k.data_ptr(), v.data_ptr(), (ctypes.c_int64 * len(strides))(*strides),
        out.data_ptr(), lse.data_ptr(), row_ptr.data_ptr(), cols.data_ptr(), (ctypes.c_int32 * len(sizes))(*sizes),
        torch.get_num_threads(),
    )  # fmt: skip


def decode(q: Tensor, problems: np.ndarray, sizes: tuple[int, int, int], out: Tensor, lse: Tensor) -> None:
    """Fill `out` and `lse`; six words (int64) per problem in the order of the C++ function."""
    _library().fovea_decode(
        q.dtype == torch.bfloat16, q.data_ptr(), problems.ctypes.data, (ctypes.c_int32 * 3)(*sizes), out.data_ptr(),
        lse.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip


def decode_packed(
    q: Tensor,
    stores: tuple[Tensor, Tensor],
    runs: tuple[np.ndarray, np.ndarray, np.ndarray],
    bits: int,
    out: Tensor,
    lse: Tensor,
) -> None:
    """Fill `out` and `lse`; stores are packed pages and log-weights, runs are first entry, entries and weighted."""
    _library().fovea_decode_packed(
        q.dtype == torch.bfloat16, bits, q.data_ptr(), *(store.data_ptr() for store in stores),
        *(run.ctypes.data for run in runs), (ctypes.c_int32 * 3)(*q.shape), out.data_ptr(), lse.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip


def pack_pages(
    keys: Tensor, values: Tensor, store: Tensor, source: np.ndarray, page: np.ndarray, heads: np.ndarray, bits: int
) -> None:
    """Round entries `source` [m] … of stores [entries,d] to pages `page` [m] of a store of bytes, of `heads` [m]."""
    _library().fovea_pack_pages(
        keys.dtype == torch.bfloat16, bits, keys.data_ptr(), values.data_ptr(), source.ctypes.data, store.data_ptr(),
        page.ctypes.data, heads.ctypes.data, len(page), keys.shape[1], torch.get_num_threads(),
    )  # fmt: skip


def unpack_pages(store: Tensor, page: np.ndarray, keys: Tensor, values: Tensor, bits: int) -> None:
    """Fill keys and values [m·16,d] from pages `page` [m]."""
    _library().fovea_unpack_pages(
        keys.dtype == torch.bfloat16, bits, store.data_ptr(), page.ctypes.data, len(page), keys.shape[1],
        keys.data_ptr(), values.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip


def last_query_scores(
    q: Tensor, k: Tensor, strides: Sequence[int], columns: Tensor, distances: Tensor, sizes: Sequence[int]
) -> None:
    """Fill both sums; strides and sizes in the order of the C++ function."""
    _library().fovea_last_query_scores(
        q.dtype == torch.bfloat16, q.data_ptr(), k.data_ptr(), (ctypes.c_int64 * 4)(*strides), columns.data_ptr(),
        distances.data_ptr(), (ctypes.c_int32 * 5)(*sizes), torch.get_num_threads(),
    )  # fmt: skip


def multiply(
    x: Tensor,
    words: Sequence[int],
    count: int,
    sizes: tuple[int, int],
    norm: tuple[Tensor, float, float] | None,
    *,
    gated: bool,
    wide: bool,
) -> None:
    """Fill the outputs that the words name, four per matrix in C++ order; a norm is weight, eps, offset.

    `wide` outputs are float32 whatever x is.
    """
    weight, eps, offset = (0, 0.0, 0.0) if norm is None else (norm[0].data_ptr(), *norm[1:])
    _library().fovea_multiply(
        x.dtype == torch.bfloat16, x.data_ptr(), (ctypes.c_int64 * len(words))(*words), count, *sizes, weight, eps,
        offset, gated, wide, torch.get_num_threads(),
    )  # fmt: skip


def multiply_packed(
    x: Tensor,
    words: Sequence[int],
    dtype: torch.dtype,
    norm: tuple[Tensor, float, float] | None,
    *,
    gated: bool = False,
    output: Literal["narrow", "wide", "added"] = "narrow",
) -> None:
    """Fill the outputs that the words name, five per packed matrix in C++ order, with x [...,K] times the matrices.

    `dtype` is the one of biases, the norm's weight and `narrow` outputs; x is of it or float32. Others are float32, and
    `added` ones hold something already. A norm is weight, eps, offset.
    """
    weight, eps, offset = (0, 0.0, 0.0) if norm is None else (norm[0].data_ptr(), *norm[1:])
    K = x.shape[-1]
    _library().fovea_multiply_packed(
        dtype == torch.bfloat16, x.dtype == torch.float32, x.data_ptr(), (ctypes.c_int64 * len(words))(*words),
        len(words) // 5, x.numel() // K, K, weight, eps, offset, gated, ("narrow", "wide", "added").index(output),
        torch.get_num_threads(),
    )  # fmt: skip


def make_decoder(facts: Sequence[int], numbers: Sequence[float], words: Sequence[int]) -> int:
    """A decoder of the C++ library, all in the order of its `Decoder`; what the words point at must outlive it."""
    made: int = _library().fovea_decoder_new(
        (ctypes.c_int64 * len(facts))(*facts),
        (ctypes.c_double * len(numbers))(*numbers),
        (ctypes.c_int64 * len(words))(*words),
    )
    return made


def delete_decoder(decoder: int) -> None:
    """Free a decoder of the C++ library."""
    _library().fovea_decoder_delete(decoder)


def view_buffers(dtype: torch.dtype, decoder: int, residual: Sequence[int], projections: Sequence[int]) -> list[Tensor]:
    """The residual stream and the projections of a step in pieces, float32 of these shapes; written in place."""
    found = (_AT * 2)()
    _library().fovea_decoder_buffers(dtype == torch.bfloat16, decoder, found)
    shapes = tuple(residual), tuple(projections)
    return [_view_floats(at, shape) for at, shape in zip(found, shapes, strict=True)]


@lru_cache(maxsize=64)
def _view_floats(address: int, shape: tuple[int, ...]) -> Tensor:
    """Memory of somebody else as a tensor; who asks knows that it lives."""
    return torch.frombuffer((_REAL * math.prod(shape)).from_address(address), dtype=torch.float32).view(*shape)


def decode_step(dtype: torch.dtype, decoder: int, words: Sequence[int], begin: int, end: int) -> None:
    """Run phases of a step, whose first piece begins at -1; words in the order of the C++ `Batch`."""
    _library().fovea_decode_step(
        dtype == torch.bfloat16, decoder, (ctypes.c_int64 * len(words))(*words), begin, end, torch.get_num_threads()
    )


def norm(x: Tensor, weight: Tensor, out: Tensor, eps: float, offset: float) -> None:
    """Fill `out`, of the weight's dtype, normalising the last axis of x, which may be float32 where they are not."""
    width = x.shape[-1]
    _library().fovea_norm(
        out.dtype == torch.bfloat16, x.dtype == torch.float32, x.data_ptr(), weight.data_ptr(), out.data_ptr(),
        x.numel() // width, width, eps, offset, torch.get_num_threads(),
    )  # fmt: skip


def rotate(heads: tuple[Tensor, Tensor], cos: Tensor, sin: Tensor, out: tuple[Tensor, Tensor]) -> None:
    """Fill `out` with q and k [B,T,heads,d] turned by tables [B·T,d]."""
    (q, k), (tokens, d) = heads, cos.shape
    _library().fovea_rotate(
        q.dtype == torch.bfloat16, q.data_ptr(), k.data_ptr(), cos.data_ptr(), sin.data_ptr(), out[0].data_ptr(),
        out[1].data_ptr(), tokens, q.shape[2], k.shape[2], d, torch.get_num_threads(),
    )  # fmt: skip


def gate(gate: Tensor, up: Tensor, out: Tensor) -> None:
    """Fill `out` with silu(gate) · up."""
    _library().fovea_gate(
        gate.dtype == torch.bfloat16, gate.data_ptr(), up.data_ptr(), out.data_ptr(), gate.numel(),
        torch.get_num_threads(),
    )  # fmt: skip


def _library() -> ctypes.CDLL:
    library, reason = load_library()
    if library is None:  # dispatch asks `explain_absence` first
        raise RuntimeError(f"there are no C++ kernels: {reason}")
    return library


def _processor() -> list[str]:
    """The processor's flags; where the system does not tell, none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
