"""Types of cached keys and values: from the words of settings and requests to formats of pages, and back."""

from typing import Literal

from fovea.api.longctx import CacheDtype
from fovea.errors import InvalidOption
from services.llm_longctx.kernels.packed_pages import R3, R4
from services.llm_longctx.kv_cache import CacheBits

_BITS: dict[CacheDtype, CacheBits | Literal[16]] = {"auto": 16, "q8": 8, "q4": 4, "r4": R4, "r3": R3}
_NAMES: dict[int, CacheDtype] = {bits: name for name, bits in _BITS.items()}


def read_cache_dtype(name: str) -> CacheBits | Literal[16]:
    """Format of older entries; 16 stands for the decoder's own type. Raises InvalidOption: There is no such type."""
    found = next((bits for word, bits in _BITS.items() if word == name), None)
    if found is None:
        raise InvalidOption(f"A cache of keys and values is {', '.join(_BITS)}, not {name}.", field="kv_cache_dtype")
    return found


def name_cache_dtype(bits: int) -> CacheDtype:
    """The word for a format."""
    return _NAMES[bits]
