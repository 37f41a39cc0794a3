"""Launches of Triton kernels: a kernel with its constants and its warps, for a card, run or compiled ahead of time.

What is compiled ahead of time is what runs: both come from one `Launch`. Needs no Triton. Knows nothing about what the
kernels compute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from services.llm_longctx.kernels.device.cards import GpuCard, card_of


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel with all that is settled before its arguments are there.

    Attributes:
        kernel: The jitted function.
        constants: Its constexpr parameters.
        warps: Of a program.
        stages: Of its loops' pipelines.
        registers: Of a thread, at most: the compiler takes all that there are, and fewer programs fit on a processor.
    """

    kernel: Any
    constants: Mapping[str, object]
    warps: int = 4
    stages: int = 3
    registers: int | None = None

    def __call__(self, grid: tuple[int, ...], first: Tensor, *rest: object) -> None:
        """Run it over a grid, on the device of its first argument: Triton would take the current one."""
        with torch.cuda.device_of(first):  # type: ignore[no-untyped-call]  # torch leaves it without annotations
            self.kernel[grid](first, *rest, **self.constants, **self.options)

    @property
    def options(self) -> dict[str, int | bool]:
        """The compiler's options."""
        options: dict[str, int | bool] = {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}
        return options if self.registers is None else options | {"maxnreg": self.registers}


@dataclass(frozen=True, slots=True)
class Variant:
    """A launch with the types of its arguments, to be compiled without them.

    Attributes:
        operation: Name of the kernel's table.
        shape: What distinguishes it from others of the operation, in words.
        launch: What is compiled.
        types: Triton's types by parameter (`*bf16`, `i32`); pointers are divisible by 16 bytes, as torch's are.
        aligned: Whole numbers that are divisible by 16.
        matrix: Whether it must use tensor cores.
        copies: Whether its loops must copy to shared memory in the background.
        vectorized: Least share of loaded bytes that loads of 8 bytes or more per thread must move.
    """

    operation: str
    shape: str
    launch: Launch
    types: Mapping[str, str]
    aligned: frozenset[str] = field(default=frozenset())
    matrix: bool = True
    copies: bool = True
    vectorized: float = 0.9


def card_for(device: torch.device) -> GpuCard:
    """Return the card that kernels on this device are shaped for; the interpreter counts as an H100."""
    return _card(device.index or 0) if device.type == "cuda" and torch.cuda.is_available() else card_of(90)


@cache
def _card(index: int) -> GpuCard:
    major, minor = torch.cuda.get_device_capability(index)
    return card_of(10 * major + minor)


def precision(dtype: torch.dtype) -> str:
    """Return how float32 is multiplied: three products of TF32 each, which is about as exact as one of float32."""
    return "tf32x3" if dtype == torch.float32 else "ieee"


def power_of_two(n: int, least: int = 1) -> int:
    """Return the next power of two from n on."""
    return max(1 << max(n - 1, 0).bit_length(), least)


_COUNTERS: dict[tuple[torch.device, int], list[Tensor]] = {}


def counters(device: torch.device, n: int) -> Tensor:
    """Return n counters that are zero whenever no kernel of the current stream runs: who uses them resets them.

    They stay where they are and live on next to larger ones, as a captured graph may hold them. The first are enough
    for any recorded step: counters that a graph makes become zero only when it is replayed.
    """
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" and torch.cuda.is_available() else 0
    held = _COUNTERS.setdefault((device, stream), [])
    if not held or len(held[-1]) < n:
        held.append(torch.zeros(power_of_two(n, 1 << 16), dtype=torch.int32, device=device))
    return held[-1]


def with_near_rows(x: Tensor) -> Tensor:
    """Return x [heads,n,d], copied where numbers of a row are apart, or rows so far that 32 bits can't count them."""
    return x if x.stride(2) == 1 and x.shape[1] * x.stride(1) < 2**31 else x.contiguous()
