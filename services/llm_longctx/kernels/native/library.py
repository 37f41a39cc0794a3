"""The built library, loaded once: its functions by name, or why there are none. Knows pointers, not what they mean."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from services.llm_longctx.kernels.native.targets import fitting, library_file

__all__ = ["absent", "block_sparse_prefill", "decode", "gate", "loaded", "norm", "products", "rotate", "told"]


@cache
def loaded() -> tuple[ctypes.CDLL | None, str]:
    """The best library that this processor can run, with its level; or None, with the reason."""
    levels = fitting(_processor())
    if not levels:
        return None, "no level of instructions fits this processor"
    for target in levels:
        if (file := library_file(target)).exists():
            try:
                return ctypes.CDLL(str(file)), target.name
            except OSError as error:
                return None, f"it can't be loaded: {error}"
    return None, "it is not built"


def absent() -> str:
    """Why there are no C++ kernels; empty where there are."""
    found, told = loaded()
    return "" if found is not None else told


def told() -> tuple[Literal["good", "note"], str]:
    """What `fovea doctor` says: a verdict and a line."""
    found, word = loaded()
    if found is not None:
        return "good", f"C++ for {word}"
    return "note", f"no C++ ({word}); attention runs on torch's own kernels. Try: fovea build-kernels"


def block_sparse_prefill(
    q: Tensor, k: Tensor, v: Tensor, strides: Sequence[int], out: Tensor, lse: Tensor, row_ptr: Tensor, cols: Tensor,
    sizes: Sequence[int],
) -> None:  # fmt: skip
    """Fill `out` and `lse`; strides and sizes in the order of the C++ function."""
    _library().fovea_block_sparse_prefill(
        int(q.dtype == torch.bfloat16), _at(q), _at(k), _at(v), (ctypes.c_int64 * len(strides))(*strides), _at(out),
        _at(lse), _at(row_ptr), _at(cols), (ctypes.c_int32 * len(sizes))(*sizes), torch.get_num_threads(),
    )  # fmt: skip


def decode(q: Tensor, words: Sequence[int], sizes: Sequence[int], out: Tensor, lse: Tensor) -> None:
    """Fill `out` and `lse`; six words per problem in the order of the C++ function."""
    problems = np.array(words, np.int64)
    _library().fovea_decode(
        int(q.dtype == torch.bfloat16), _at(q), ctypes.c_void_p(problems.ctypes.data),
        (ctypes.c_int32 * len(sizes))(*sizes), _at(out), _at(lse), torch.get_num_threads(),
    )  # fmt: skip


def products(x: Tensor, words: Sequence[int], count: int, sizes: tuple[int, int], *, gated: bool) -> None:
    """Fill the outputs that the words name; four words per matrix in the order of the C++ function."""
    _library().fovea_products(
        int(x.dtype == torch.bfloat16), _at(x), (ctypes.c_int64 * len(words))(*words), count, *sizes, int(gated),
        torch.get_num_threads(),
    )  # fmt: skip


def norm(x: Tensor, weight: Tensor, out: Tensor, eps: float, offset: float) -> None:
    """Fill `out`, normalising the last axis."""
    width = x.shape[-1]
    _library().fovea_norm(
        int(x.dtype == torch.bfloat16), _at(x), _at(weight), _at(out), ctypes.c_int64(x.numel() // width), width,
        ctypes.c_float(eps), ctypes.c_float(offset), torch.get_num_threads(),
    )  # fmt: skip


def rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """Fill `out` with the heads x [tokens,heads,d] turned by tables [tokens,d]."""
    tokens, heads, d = x.shape
    _library().fovea_rotate(
        int(x.dtype == torch.bfloat16), _at(x), _at(cos), _at(sin), _at(out), ctypes.c_int64(tokens), heads, d,
        torch.get_num_threads(),
    )  # fmt: skip


def gate(closed: Tensor, opened: Tensor, out: Tensor) -> None:
    """Fill `out` with silu(closed) · opened."""
    _library().fovea_gate(
        int(closed.dtype == torch.bfloat16), _at(closed), _at(opened), _at(out), ctypes.c_int64(closed.numel()),
        torch.get_num_threads(),
    )  # fmt: skip


def _library() -> ctypes.CDLL:
    found, told = loaded()
    assert found is not None, told  # noqa: S101  # dispatch asks `absent` first
    return found


def _at(x: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())


def _processor() -> list[str]:
    """The processor's flags; where the system does not tell, none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
