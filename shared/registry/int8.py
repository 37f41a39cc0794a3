"""Kernels as bytes: a scale for each output, and eight bits for each number. Halves a file of float16.

Knows numpy arrays by key; knows no network. Symmetric rounding to the nearest, per first axis, as post-training
quantisation of weights is usually done (Nagel et al., *A White Paper on Neural Network Quantization*, 2021, section 2).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

Arrays = Mapping[str, np.ndarray]

SCALE = ".int8_scale"
"""Ending of the key of a kernel's scales."""

LEAST = 512
"""Numbers of a kernel below which packing it is not worth its scales."""


def pack_kernels(arrays: Arrays) -> dict[str, np.ndarray]:
    """Arrays of two or more axes as int8 next to their scales (first axis,); all others as they are."""
    packed = dict[str, np.ndarray]()
    for key, array in arrays.items():
        if array.ndim < 2 or array.size < LEAST or not np.issubdtype(array.dtype, np.floating):
            packed[key] = array
            continue
        rows = array.reshape(len(array), -1).astype(np.float32)
        scale = (np.abs(rows).max(axis=1) / 127).astype(np.float16)
        scale = np.where(scale > 0, scale, np.float16(1))
        whole = np.clip(np.rint(rows / scale[:, None].astype(np.float32)), -127, 127)
        packed[key] = whole.astype(np.int8).reshape(array.shape)
        packed[key + SCALE] = scale
    return packed


def unpack_kernels(arrays: Arrays) -> dict[str, np.ndarray]:
    """The arrays that `pack_kernels` was given, rounded, as float32 where they were packed."""
    found = dict[str, np.ndarray]()
    for key, array in arrays.items():
        if key.endswith(SCALE):
            continue
        scale = arrays.get(key + SCALE)
        if scale is None:
            found[key] = array
        else:
            found[key] = array.astype(np.float32) * scale.astype(np.float32).reshape(-1, *[1] * (array.ndim - 1))
    return found
