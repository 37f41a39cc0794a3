"""GPUs that the kernels are built for: their limits and their rates, as the makers' data sheets give them.

Knows nothing about kernels.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GpuCard:
    """One model of GPU.

    Attributes:
        name: As the maker calls it.
        capability: Compute capability: 90 for 9.0.
        processors: Streaming multiprocessors.
        shared: Bytes of shared memory that one program may use.
        bandwidth: Bytes per second of its memory.
        matrix_rate: Operations per second of its tensor cores in bfloat16, dense.
        memory: Bytes of its memory.
    """

    name: str
    capability: int
    processors: int
    shared: int
    bandwidth: float
    matrix_rate: float
    memory: float


CARDS = (
    GpuCard("A100", 80, 108, 166_912, 2.039e12, 312e12, 80e9),
    GpuCard("L4", 89, 58, 101_376, 0.300e12, 121e12, 24e9),
    GpuCard("H100", 90, 132, 232_448, 3.35e12, 989e12, 80e9),
    GpuCard("B200", 100, 148, 232_448, 8.0e12, 2250e12, 180e9),
)
"""In the order of their capabilities: A100 (SXM, 80 GB), L4, H100 (SXM) and B200."""


def card_of(capability: int) -> GpuCard:
    """Return the newest card that is not newer than a capability; its kernels fit there.

    Cards of 8.x other than A100, and those of 12.x, have as little shared memory as an L4.
    """
    known = [card for card in CARDS if card.capability <= capability]
    if not known:
        return CARDS[0]
    return CARDS[1] if 80 < capability < 90 or capability >= 120 else known[-1]
