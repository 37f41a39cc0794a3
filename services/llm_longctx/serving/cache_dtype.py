"""Types of cached keys and values: from the words of settings and requests to bits, and back."""

from __future__ import annotations

from typing import Literal

from services.llm_longctx.kv_cache import CacheBits
from shared.errors import InvalidOption

CacheDtype = Literal["auto", "q8", "q4"]

_BITS: dict[str, CacheBits | Literal[16]] = {"auto": 16, "q8": 8, "q4": 4}
_NAMES: dict[int, CacheDtype] = {16: "auto", 8: "q8", 4: "q4"}


def read_cache_dtype(name: str) -> CacheBits | Literal[16]:
    """Bits of older entries; 16 stands for the decoder's own type.

    Raises:
        InvalidOption: There is no such type.
    """
    if name not in _BITS:
        detail = f"A cache of keys and values is {', '.join(_BITS)}, not {name}."
        raise InvalidOption(detail, field="kv_cache_dtype")
    return _BITS[name]


def name_cache_dtype(bits: int) -> CacheDtype:
    """The word for so many bits."""
    return _NAMES[bits]
