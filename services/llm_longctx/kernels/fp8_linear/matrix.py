"""Layout of an FP8 matrix: a row is its codes, filled up to 16, and 16 bytes that begin with its scale in float32.

So a row begins at a multiple of 16 bytes, and one tensor holds all. Knows bytes; knows nothing about kernels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

LEAST_CAPABILITY = 89
"""Compute capability from which cards multiply FP8 (8.9: L4; 9.0: H100; 10.0: B200)."""

LARGEST = 448.0
"""The largest number of e4m3."""

LINE = 16
"""Bytes that a row and its scale are filled up to."""


@dataclass(frozen=True, slots=True, eq=False)
class Fp8Matrix:
    """A matrix in e4m3 with a scale per row.

    Attributes:
        rows, columns: Its own sizes.
        data: uint8 [rows,stride].
    """

    rows: int
    columns: int
    data: Tensor

    @classmethod
    def of(cls, data: Tensor, rows: int, columns: int) -> Fp8Matrix:
        """A matrix from its bytes. Raises ValueError: they are not a matrix of these sizes."""
        if data.dtype != torch.uint8 or data.shape != (rows, pad_columns(columns) + LINE):
            raise ValueError(f"{data.dtype} {list(data.shape)} is not an FP8 matrix of {rows} x {columns}")
        return cls(rows, columns, data)

    def to(self, device: torch.device | str) -> Self:
        """The matrix on a device."""
        return replace(self, data=self.data.to(device))

    def unpack(self) -> Tensor:
        """The matrix as float32 [rows,columns]."""
        codes = self.data[:, : self.columns].view(torch.float8_e4m3fn).float()
        return codes * self.data[:, -LINE:].contiguous().view(torch.float32)[:, :1]


def pad_columns(columns: int) -> int:
    """Bytes of a row's codes."""
    return -(-columns // LINE) * LINE


def round_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round rows x [n,columns]: e4m3 of the same shape, and scales float32 [n,1]; the largest number becomes 448."""
    x = x.float()
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-30) / LARGEST
    return (x / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scale


def pack_fp8(weight: Tensor) -> Fp8Matrix:
    """Round a matrix [rows,columns] and lay it out for the kernels."""
    (rows, columns), (codes, scale) = weight.shape, round_rows(weight)
    data = torch.zeros(rows, pad_columns(columns) + LINE, dtype=torch.uint8, device=weight.device)
    data[:, :columns] = codes.view(torch.uint8)
    data[:, -LINE : 4 - LINE] = scale.view(torch.uint8)
    return Fp8Matrix(rows, columns, data)
