"""Matrices of 8 or 4 bits in groups of 32 columns: w = scale · code + minimum, as GGUF's Q4_0, Q4_1 and Q8_0 have them.

Blocks of a GGUF file become the same numbers in another order, without a loss; other matrices are rounded. Knows
nothing about decoders or kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

GROUP = 32
"""Columns that share a scale."""

_SHRINKS = np.linspace(1.0, 0.8, 9, dtype=np.float32)
"""Shares of a group's range that are tried in 4 bits: cutting off an extreme may round the others better."""


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedMatrix:
    """A matrix [rows,columns] of few bits.

    Attributes:
        bits: 8 or 4.
        columns: K; the last group is filled up with zeros.
        codes: uint8 [rows, groups·32]; in 8 bits 128 stands for 0.
        scale: float16 [rows,groups].
        minimum: float16 [rows,groups]; zeros in 8 bits.
    """

    bits: int
    columns: int
    codes: np.ndarray
    scale: np.ndarray
    minimum: np.ndarray

    @property
    def rows(self) -> int:
        """How many rows."""
        return int(self.codes.shape[0])

    @property
    def groups(self) -> int:
        """Groups per row."""
        return int(self.scale.shape[1])

    def dequantize(self) -> np.ndarray:
        """The matrix as float32 [rows,columns]."""
        codes = self.codes.reshape(self.rows, self.groups, GROUP).astype(np.float32)
        if self.bits == 8:
            codes -= 128
        wide = codes * self.scale[..., None].astype(np.float32) + self.minimum[..., None].astype(np.float32)
        return np.ascontiguousarray(wide.reshape(self.rows, -1)[:, : self.columns])

    def take_rows(self, order: np.ndarray) -> QuantizedMatrix:
        """The same rows in another order."""
        return QuantizedMatrix(self.bits, self.columns, self.codes[order], self.scale[order], self.minimum[order])


def quantize(matrix: np.ndarray, bits: int) -> QuantizedMatrix:
    """Round a matrix [rows,columns] group by group to 8 or 4 bits; `ValueError` for anything else.

    8 bits are symmetric (the largest magnitude becomes 127). 4 bits have a minimum, and of several ranges the one with
    the smallest squared error is taken.
    """
    if bits not in {4, 8} or matrix.ndim != 2:
        raise ValueError(f"a matrix is rounded to 8 or 4 bits, not a {matrix.ndim}-dimensional array to {bits}")
    rows, columns = matrix.shape
    padded = np.zeros((rows, -(-columns // GROUP) * GROUP), np.float32)
    padded[:, :columns] = matrix
    groups = padded.reshape(rows, -1, GROUP)
    codes, scale, minimum = _round_8(groups) if bits == 8 else _round_4(groups)
    return QuantizedMatrix(bits, columns, codes.reshape(rows, -1), scale, minimum)


def _round_8(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scale = (np.abs(groups).max(-1) / 127).astype(np.float16)
    codes = np.rint(groups * _inverse(scale)[..., None]).clip(-127, 127) + 128
    return codes.astype(np.uint8), scale, np.zeros_like(scale)


def _round_4(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    low, high = groups.min(-1), groups.max(-1)
    best = np.full(low.shape, np.inf, np.float32)
    found = np.zeros(groups.shape, np.uint8), np.zeros(low.shape, np.float16), np.zeros(low.shape, np.float16)
    for shrink in _SHRINKS:
        cut = (high - low) * (1 - shrink) / 2
        minimum = (low + cut).astype(np.float16)
        scale = ((high - cut - minimum) / 15).astype(np.float16)
        wide = minimum.astype(np.float32)[..., None]
        codes = np.rint((groups - wide) * _inverse(scale)[..., None]).clip(0, 15)
        error = np.square(codes * scale.astype(np.float32)[..., None] + wide - groups).sum(-1)
        better = error < best
        best = np.where(better, error, best)
        for to, new in zip(found, (codes, scale, minimum), strict=True):
            to[better] = new[better]
    return found


def _inverse(scale: np.ndarray) -> np.ndarray:
    wide = scale.astype(np.float32)
    return np.divide(1, wide, out=np.zeros_like(wide), where=wide != 0)


def from_gguf_blocks(kind: str, blocks: np.ndarray, columns: int) -> QuantizedMatrix | None:
    """The matrix in a GGUF tensor's blocks (uint8 [rows,bytes]); None for kinds other than Q4_0, Q4_1 and Q8_0."""
    rows, sizes = blocks.shape[0], {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}
    if kind not in sizes or columns % GROUP:
        return None
    parts = blocks.reshape(rows, columns // GROUP, sizes[kind])
    scale = np.ascontiguousarray(parts[..., :2]).view(np.float16)[..., 0]
    if kind == "Q8_0":
        return QuantizedMatrix(8, columns, (parts[..., 2:] ^ 128).reshape(rows, columns), scale, np.zeros_like(scale))
    nibbles = parts[..., -16:]
    codes = np.concatenate((nibbles & 15, nibbles >> 4), -1).reshape(rows, columns)
    if kind == "Q4_1":
        return QuantizedMatrix(4, columns, codes, scale, np.ascontiguousarray(parts[..., 2:4]).view(np.float16)[..., 0])
    return QuantizedMatrix(4, columns, codes, scale, (-8 * scale.astype(np.float32)).astype(np.float16))
