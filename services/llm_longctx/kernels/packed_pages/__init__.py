"""Pages of 16 entries in few bits, of two families.

8 and 4 bits: keys per channel, values per token (KIVI, section 3), one zero and scale each. R4 and R3: keys and values
rotated, of unit norm and rounded to one table of levels, one scale each (see `rotation`).

Packed from and unpacked to the decoder's type. Knows bytes, not whose pages they are; `reference` says what they mean.
"""

import numpy as np
import torch
from torch import Tensor

from services.llm_longctx.kernels.native import bindings
from services.llm_longctx.kernels.packed_pages import reference
from services.llm_longctx.kernels.packed_pages.layout import (
    CACHE_FORMATS,
    MOST_CHANNELS,
    PAGE,
    R3,
    R4,
    CacheBits,
    PackedLayout,
)
from shared.lm.host_transfer import to_device

__all__ = [
    "CACHE_FORMATS", "MOST_CHANNELS", "PAGE", "R3", "R4", "CacheBits", "PackedLayout", "pack_pages", "unpack_pages",
]  # fmt: skip


def pack_pages(
    layout: PackedLayout,
    keys: Tensor,
    values: Tensor,
    source: np.ndarray,
    store: Tensor,
    page: np.ndarray,
    heads: np.ndarray,
) -> None:
    """Round entries to few bits.

    Args:
        layout: Bits and sizes.
        keys: Store of whole entries [entries,d].
        values: Their values [entries,d].
        source: First of 16 consecutive entries for each page [m] int64.
        store: Packed pages [pages,bytes] uint8, of which some are written.
        page: Which ones [m] int64.
        heads: Number of each page's head in the model [m] int64, which seeds the rotation.
    """
    if _is_native(keys):
        source, page, heads = (np.ascontiguousarray(x) for x in (source, page, heads))
        bindings.pack_pages(keys, values, store, source, page, heads, layout.bits)
        return
    rows = to_device(source, keys.device)[:, None] + torch.arange(PAGE, device=keys.device)
    packed = reference.pack(layout, keys[rows], values[rows], to_device(heads, keys.device))
    store[to_device(page, store.device)] = packed


def unpack_pages(layout: PackedLayout, store: Tensor, page: np.ndarray, keys: Tensor, values: Tensor) -> None:
    """Fill keys and values [m·16,d], whose rows are contiguous, with the entries of pages [m] of a store."""
    if _is_native(keys):
        bindings.unpack_pages(store, np.ascontiguousarray(page), keys, values, layout.bits)
        return
    k, v = reference.unpack(layout, store[to_device(page, store.device)])
    keys.copy_(k.flatten(0, 1))
    values.copy_(v.flatten(0, 1))


def _is_native(keys: Tensor) -> bool:
    native = keys.device.type == "cpu" and keys.dtype in {torch.float32, torch.bfloat16}
    return native and not bindings.explain_absence()
