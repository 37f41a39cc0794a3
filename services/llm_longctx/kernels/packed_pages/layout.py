"""Layout of a packed page: where its codes, scales and zeros lie. `packed_pages.h` has the same.

Codes lie in vectors of 64 bytes, 16 lanes of 32 bits. A lane is an entry in keys and a channel in values; what it
holds are the codes of the next 32 / bits channels or entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LANES = PAGE = 16
"""Entries of a page, which are the lanes of a vector."""

VALUE_GROUP = 64
"""Channels of a value that share a scale."""

MOST_CHANNELS = 512
"""Channels of a key that the kernels have room for."""

CacheBits = Literal[8, 4]


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """Sizes of a page; after the codes come scales, then zeros, of channels of keys, then of entries of values.

    Attributes:
        bits: 8 or 4.
        head_dim: d, channels of a key or value.
    """

    bits: CacheBits
    head_dim: int

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            ValueError: There is no kernel for them.
        """
        if self.bits not in {8, 4} or not 1 <= self.head_dim <= MOST_CHANNELS:
            message = f"pages hold 8 or 4 bits and 1 to {MOST_CHANNELS} channels, not {self.bits} and {self.head_dim}"
            raise ValueError(message)

    @property
    def width(self) -> int:
        """Channels with what fills up vectors."""
        return -(-self.head_dim // LANES) * LANES

    @property
    def steps(self) -> int:
        """Codes in a lane."""
        return 32 // self.bits

    @property
    def code_bytes(self) -> int:
        """Bytes of the codes of keys; those of values are as many."""
        return self.width * PAGE * self.bits // 8

    @property
    def value_groups(self) -> int:
        """Groups of channels of a value."""
        return -(-self.head_dim // VALUE_GROUP)

    @property
    def nbytes(self) -> int:
        """Bytes of a page."""
        return 2 * self.code_bytes + 2 * self.width + 2 * PAGE * self.value_groups

    def shift(self, step: int) -> int:
        """Where in its lane a code lies: even ones in the lower half, odd ones in the upper."""
        return self.bits * (step >> 1) + 16 * (step & 1)
