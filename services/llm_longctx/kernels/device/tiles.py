"""Tiles of attention kernels over many queries, by card, dtype and head size: the largest that do not spill.

Found by compiling ahead of time. Knows nothing about which keys a query sees.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from services.llm_longctx.kernels.device.cards import GpuCard
from services.llm_longctx.kernels.device.launch import power_of_two, precision
from services.llm_longctx.kernels.dispatch import is_interpreted


@dataclass(frozen=True, slots=True)
class Tiles:
    """Sizes of a kernel's products.

    Attributes:
        rows: Queries of a product.
        keys: Its keys.
        warps: Of a program.
        stages: Of its loops' pipelines.
        precision: How numbers are multiplied.
    """

    rows: int
    keys: int
    warps: int
    stages: int
    precision: str

    def constants(self) -> dict[str, object]:
        """Return the constexpr parameters that all such kernels have."""
        # The interpreter multiplies bfloat16 as if it were whole numbers.
        return {"ROWS": self.rows, "KEYS": self.keys, "PRECISION": self.precision, "WIDEN": is_interpreted()}


def prefill_tiles(card: GpuCard, dtype: torch.dtype, d: int, rows: int, keys: int) -> Tiles:
    """Choose tiles that fit a card's registers and shared memory, no larger than `rows` and `keys` need."""
    most_rows, most_keys, warps, stages = _wide(card, d) if dtype == torch.float32 else _narrow(card, d)
    rows, keys = (power_of_two(n, 16) for n in (rows, keys))
    return Tiles(min(most_rows, rows), min(most_keys, keys), warps, stages, precision(dtype))


def _narrow(card: GpuCard, d: int) -> tuple[int, int, int, int]:
    """Rows, keys, warps and stages for numbers of two bytes."""
    if d > 128:
        return 64, 64 if card.shared > 110_000 else 32, 8, 2
    if d > 64 and card.shared > 200_000:
        return 128, 64, 8, 3
    return 64, 64, 4, 3 if card.shared > 110_000 else 2


def _wide(card: GpuCard, d: int) -> tuple[int, int, int, int]:
    """The same for float32: three products of TF32 take three times the registers of one."""
    keys = 32 if d > 128 else 64
    return 16, keys if card.shared > 110_000 else keys // 2, 8, 2
