"""Dense KV cache of a decoder: keys and values per layer, in one buffer that grows by doubling.

Knows shapes and lengths. Knows nothing about pages, eviction or attention methods.
"""

import copy
from typing import Self

import torch
from torch import Tensor

from shared.lm.config import DecoderConfig

_MIN_ROOM = 256
"""Tokens of the first buffer, unless more are reserved."""


class KVCache:
    """Dense cache of one batch: keys and values [B,G,S,d] per layer, after norm and rotation. It holds no gradients.

    Attributes:
        length: Tokens held; the position of the next one. Lowering it forgets the tail.
        pad: Left padding per row [B] in tokens, or None; see `set_padding`.
    """

    def __init__(
        self,
        config: DecoderConfig,
        batch: int = 1,
        *,
        room: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Reserve `room` tokens at once (0: a small buffer that grows)."""
        self.length = 0
        self.pad: Tensor | None = None
        shape = (2, batch, config.kv_heads, max(room, min(_MIN_ROOM, config.positions)), config.head_dim)
        self._layers = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.layers)]

    @property
    def room(self) -> int:
        """Tokens that fit before the buffers grow."""
        return self._layers[0].shape[3]

    @property
    def nbytes(self) -> int:
        """Bytes reserved."""
        return sum(layer.nbytes for layer in self._layers)

    def set_padding(self, pad: Tensor | None) -> Tensor | None:
        """Set the left padding once, and return the one in force: the first one stays."""
        if self.pad is None:
            self.pad = pad
        return self.pad

    @torch.no_grad()
    def write(self, layer: int, k: Tensor, v: Tensor, offset: int) -> tuple[Tensor, Tensor]:
        """Write k and v [B,T,G,d] of tokens `offset`…`offset+T`; return all keys and values up to there [B,G,S,d]."""
        end = offset + k.shape[1]
        if end > self._layers[layer].shape[3]:
            self._grow(layer, end, keep=offset)
        keys, values = self._layers[layer][0, :, :, :end], self._layers[layer][1, :, :, :end]
        keys[:, :, offset:] = k.transpose(1, 2)
        values[:, :, offset:] = v.transpose(1, 2)
        return keys, values

    def keys(self, layer: int, end: int) -> Tensor:
        """Return the keys of the first `end` tokens, [B,end,G,d]."""
        return self._layers[layer][0, :, :, :end].transpose(1, 2)

    def values(self, layer: int, end: int) -> Tensor:
        """Return the values of the first `end` tokens, [B,end,G,d]."""
        return self._layers[layer][1, :, :, :end].transpose(1, 2)

    def fork(self) -> Self:
        """Return an independent copy of the cache as it is now."""
        return copy.deepcopy(self)

    def _grow(self, layer: int, end: int, *, keep: int) -> None:
        old = self._layers[layer]
        new = old.new_empty((*old.shape[:3], max(end, 2 * old.shape[3]), old.shape[4]))
        new[:, :, :, :keep] = old[:, :, :, :keep]
        self._layers[layer] = new
