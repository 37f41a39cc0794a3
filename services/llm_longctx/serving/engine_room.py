"""Room of a served engine: bytes for keys and values, and sequences at a time, by where the decoder runs.

Knows devices; knows no model.
"""

from __future__ import annotations

import torch

_HOST_BYTES = 2 * 2**30
_HOST_BATCH = 8

_DEVICE_SHARE = 0.8
"""Share of the memory that is free once the weights are there: activations, graphs and other services need some."""

_DEVICE_BATCH = 64
"""Sequences of a step on a GPU, which reads the weights once for all of them."""


def choose_room(device: str, cache_bits: int) -> tuple[int, int]:
    """Bytes of keys and values, and sequences that are decoded at a time; asked once the weights are loaded.

    On a GPU, pages take their memory when an engine is made, those of few bits next to whole ones: each kind gets half.
    """
    if not device.startswith("cuda"):
        return _HOST_BYTES, _HOST_BATCH
    free, _ = torch.cuda.mem_get_info(device)
    return int(_DEVICE_SHARE * free) // (1 if cache_bits == 16 else 2), _DEVICE_BATCH
