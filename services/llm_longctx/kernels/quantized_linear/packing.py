"""Packed layout of few-bit matrices: strips of 16 rows, four columns of all of them in one vector of 64 bytes.

32-bit lanes are rows, so that products of bytes add up where they belong. Knows `quantized_rows.h`, which reads it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from shared.lm.quantization import GROUP, QuantizedMatrix

LAYOUT = 1
"""Number of the layout; files that carry another are packed again."""

STRIP = 16
_GROUP_BYTES = {4: 320, 8: 544}
_CODE_BYTES = {4: 256, 8: 512}


def tile_of(capability: int) -> tuple[int, int]:
    """Strips and groups that a GPU's program widens at a time, by compute capability (90 for 9.0)."""
    return (8, 2) if capability < 100 else (4, 4)


@dataclass(frozen=True, slots=True, eq=False)
class PackedMatrix:
    """A few-bit matrix as the kernels read it.

    Attributes:
        bits: 8 or 4.
        rows, columns: The matrix's own, without what fills up strips and groups.
        data: uint8 [strips, groups, bytes].
    """

    bits: int
    rows: int
    columns: int
    data: Tensor

    @classmethod
    def of(cls, data: Tensor, rows: int, columns: int) -> PackedMatrix:
        """A matrix from its packed bytes. Raises ValueError: they are not a matrix of these sizes."""
        bits = next((bits for bits, size in _GROUP_BYTES.items() if data.dim() == 3 and data.shape[2] == size), 0)
        if data.shape[:2] != (-(-rows // STRIP), -(-columns // GROUP)) or data.dtype != torch.uint8 or not bits:
            raise ValueError(f"{data.dtype} {list(data.shape)} is no packed matrix of {rows} x {columns}")
        return cls(bits, rows, columns, data)

    def to(self, device: torch.device | str) -> Self:
        """The matrix on a device."""
        return replace(self, data=self.data.to(device))

    def unpack(self) -> QuantizedMatrix:
        """The matrix that was packed."""
        raw, (strips, groups) = self.data.numpy(), self.data.shape[:2]
        codes, rest = raw[..., : _CODE_BYTES[self.bits]], raw[..., _CODE_BYTES[self.bits] :]
        if self.bits == 4:
            both = codes.reshape(strips, groups, 4, STRIP, 4)
            halves = np.stack((both & 15, both >> 4), 3)  # [strip, group, eight, half, row, column]
            codes = halves.transpose(0, 4, 1, 2, 3, 5)
        else:
            codes = codes.reshape(strips, groups, 8, STRIP, 4).transpose(0, 3, 1, 2, 4)
        plain = np.ascontiguousarray(codes).reshape(strips * STRIP, groups * GROUP)[: self.rows]
        numbers = np.ascontiguousarray(rest).view(np.float16).reshape(strips, groups, -1, STRIP)
        scale, *more = (
            numbers[:, :, i].transpose(0, 2, 1).reshape(strips * STRIP, groups)[: self.rows]
            for i in range(numbers.shape[2])
        )
        return QuantizedMatrix(self.bits, self.columns, plain, scale, more[0] if more else np.zeros_like(scale))


def pack(matrix: QuantizedMatrix) -> PackedMatrix:
    """Lay a few-bit matrix out for the kernels."""
    strips, groups = -(-matrix.rows // STRIP), matrix.groups
    codes = _fill_up(matrix.codes, strips * STRIP)
    if matrix.bits == 4:
        parts = codes.reshape(strips, STRIP, groups, 4, 2, 4).transpose(0, 2, 3, 4, 1, 5)
        vectors = parts[:, :, :, 0] | parts[:, :, :, 1] << 4
    else:
        vectors = codes.reshape(strips, STRIP, groups, 8, 4).transpose(0, 2, 3, 1, 4)
    numbers = [matrix.scale, matrix.minimum] if matrix.bits == 4 else [matrix.scale]
    pieces = [np.ascontiguousarray(vectors).reshape(strips, groups, -1)]
    for one in numbers:
        ordered = _fill_up(one, strips * STRIP).reshape(strips, STRIP, groups).transpose(0, 2, 1)
        pieces.append(np.ascontiguousarray(ordered).view(np.uint8).reshape(strips, groups, -1))
    data = torch.from_numpy(np.concatenate(pieces, -1))
    return PackedMatrix(matrix.bits, matrix.rows, matrix.columns, data)


def _fill_up(array: np.ndarray, rows: int) -> np.ndarray:
    return np.concatenate((array, np.zeros((rows - len(array), array.shape[1]), array.dtype)))
