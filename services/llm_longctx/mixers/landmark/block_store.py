"""Where the blocks of a landmark session are kept: on the device, in main memory or on disk, and fetched by number.

Knows keys and values before rotation and how many bytes were moved; knows nothing about attention.
"""

from __future__ import annotations

import tempfile
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

__all__ = ["BlockStore", "Home", "home"]

Home = Literal["device", "cpu", "disk"]


def home(offload: bool | str) -> Home:
    """What the option says: False keeps blocks on the device, True is `cpu`.

    Raises:
        ValueError: It is neither a boolean nor `cpu` or `disk` (or `none`).
    """
    known: dict[bool | str, Home] = {False: "device", True: "cpu", "none": "device", "cpu": "cpu", "disk": "disk"}
    if offload not in known:
        message = f"offload must be one of none, cpu, disk, not {offload!r}"
        raise ValueError(message)
    return known[offload]


class BlockStore:
    """Full blocks of one layer, oldest first; with a capacity the oldest go.

    Attributes:
        first: Absolute number of the oldest block that is still held.
        moved: Bytes that were fetched from another home than the device.
        capacity: Most blocks that are held.
    """

    def __init__(self, kind: Home = "device", capacity: int | None = None) -> None:
        self.first = 0
        self.moved = 0
        self._kind = kind
        self.capacity = capacity
        self._blocks: list[Tensor] = []
        self._keys: list[Tensor] = []
        self._index: Tensor | None = None

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def landmarks(self) -> Tensor:
        """Keys of the landmarks [B,H,n,d], always on the device: the index."""
        if self._index is None:
            self._index = torch.stack(self._keys, 2)
        return self._index

    @property
    def means(self) -> Tensor:
        """Mean key of each block's ordinary tokens [B,H,n,d]: an index without landmarks, to compare with."""
        return torch.stack([block[:, :, 0, :-1].mean(2) for block in self._blocks], 2).to(self._keys[0].device)

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and landmarks held, wherever they are."""
        return sum(tensor.nbytes for tensor in (*self._blocks, *self._keys))

    def append(self, k: Tensor, v: Tensor) -> None:
        """Store whole blocks; k and v are [B,H,m,L+1,d], the landmark last."""
        self._index = None
        for keys, values in zip(k.unbind(2), v.unbind(2), strict=True):
            self._keys.append(keys[:, :, -1].clone())
            self._blocks.append(self._kept(torch.stack((keys, values), 2)))
        while self.capacity is not None and len(self._blocks) > self.capacity:
            del self._blocks[0], self._keys[0]
            self.first += 1

    def fetch(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B,H,t,k,L+1,d] of the blocks `chosen` [B,H,t,k], numbered from the oldest held."""
        like = self._keys[0]
        wanted, index = torch.unique(chosen, return_inverse=True)
        pile = torch.stack([self._blocks[j] for j in wanted.tolist()], 2).to(like.device)  # [B,H,m,2,L+1,d]
        B, H, t, k = chosen.shape
        found = pile.flatten(3).take_along_dim(index.view(B, H, t * k, 1), 2).view(B, H, t, k, *pile.shape[3:])
        if self._kind != "device":
            self.moved += found.nbytes
        return found[..., 0, :, :], found[..., 1, :, :]

    def pile(self) -> Tensor | None:
        """All blocks [n,B,H,2,L+1,d] in main memory, keys then values, if there are any."""
        return torch.stack([block.cpu() for block in self._blocks]) if self._blocks else None

    def fill(self, pile: Tensor, first: int) -> None:
        """Hold the blocks of a pile, the oldest of which has the number `first`."""
        self.first, self._index = first, None
        self._keys = [block[:, :, 0, -1].clone() for block in pile]
        # Each a copy of its own: a slice would keep the whole pile alive when the oldest go.
        self._blocks = [self._kept(block.clone()) for block in pile]

    def fork(self) -> Self:
        """A store that goes its own way; blocks are never written again, so both may hold the same ones."""
        twin = object.__new__(type(self))
        twin.first, twin.moved, twin._kind, twin.capacity = self.first, 0, self._kind, self.capacity
        twin._blocks, twin._keys, twin._index = list(self._blocks), list(self._keys), self._index
        return twin

    def _kept(self, block: Tensor) -> Tensor:
        if self._kind == "disk":
            # An unlinked file: the mapping keeps it alive and its bytes go when the last holder of the block goes.
            with tempfile.TemporaryFile() as file:
                mapped = np.memmap(file, dtype=np.uint8, mode="w+", shape=(block.nbytes,))
            mapped[:] = block.contiguous().view(torch.uint8).flatten().numpy()
            return torch.from_numpy(mapped).view(block.dtype).view(block.shape)
        return block.cpu() if self._kind == "cpu" else block
