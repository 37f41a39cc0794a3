"""Layout of a packed page: where its codes, scales and zeros lie. `packed_pages.h` and `rotated_page.h` have the same.

Codes lie in vectors of 64 bytes, 16 lanes of 32 bits. A lane is an entry in keys and a channel in values; what it
holds are the codes of the next 32 / bits channels or entries. Three bits are two such planes: 16 codes of the two lower
bits in 32, then, behind all of these, their upper bits in lanes of 16.
"""

from dataclasses import dataclass
from typing import Literal, TypeGuard

LANES = PAGE = 16
"""Entries of a page, which are the lanes of a vector."""

VALUE_GROUP = 64
"""Channels of a value that share a scale."""

MOST_CHANNELS = 512
"""Channels of a key that the kernels have room for."""

CacheBits = Literal[8, 4, 68, 67]
"""Format of a page: bits of a code, and 64 more where entries are rotated before they are rounded."""

R4: Literal[68] = 68
R3: Literal[67] = 67
CACHE_FORMATS: tuple[CacheBits, ...] = (8, 4, R4, R3)
"""All formats, in the order in which the C++ step takes their stores."""

_ROTATED = 64


def tile_entries(wide: int) -> int:
    """Entries of a tile of `wide` channels that a GPU's kernel widens at a time (pages that are not rotated)."""
    return 64 if wide <= 64 else 32


def is_cache_format(bits: int) -> TypeGuard[CacheBits]:
    """Whether pages of such a format exist."""
    return bits in CACHE_FORMATS


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """Sizes of a page; after the codes come scales, then zeros, of channels of keys, then of entries of values.

    A rotated page has a scale per key and per value instead, 16 each of half precision. Their signs, from the lowest
    bit up, are the number of the page's head, which seeds the rotation.

    Attributes:
        bits: The format: 8 or 4, or R4 or R3.
        head_dim: d, channels of a key or value.
    """

    bits: CacheBits
    head_dim: int

    def __post_init__(self) -> None:
        """Check the sizes. Raises ValueError: there is no kernel for them."""
        if not is_cache_format(self.bits) or not 1 <= self.head_dim <= MOST_CHANNELS:
            message = (
                f"pages are of format {', '.join(map(str, CACHE_FORMATS))} and have 1 to {MOST_CHANNELS} channels, not "
                f"{self.bits} and {self.head_dim}"
            )
            raise ValueError(message)

    @property
    def is_rotated(self) -> bool:
        """Whether entries are rotated before they are rounded."""
        return self.bits > _ROTATED

    @property
    def code_bits(self) -> int:
        """Bits of a code."""
        return self.bits % _ROTATED

    @property
    def width(self) -> int:
        """Channels with what fills up vectors."""
        return -(-self.head_dim // LANES) * LANES

    @property
    def steps(self) -> int:
        """Codes in a lane, of three bits their lower two."""
        return 32 // (2 if self.code_bits == 3 else self.code_bits)

    @property
    def code_bytes(self) -> int:
        """Bytes of the codes of keys; those of values are as many."""
        return self.width * PAGE * self.code_bits // 8

    @property
    def value_groups(self) -> int:
        """Groups of channels of a value."""
        return -(-self.head_dim // VALUE_GROUP)

    @property
    def nbytes(self) -> int:
        """Bytes of a page."""
        scales = 4 * PAGE if self.is_rotated else 2 * self.width + 2 * PAGE * self.value_groups
        return 2 * self.code_bytes + scales

    def shift(self, step: int) -> int:
        """Where in its lane a code lies: even ones in the lower half, odd ones in the upper."""
        return 32 // self.steps * (step >> 1) + 16 * (step & 1)
