"""Block store of a landmark session: keys and values of full blocks on the device, in main memory or on disk.

Blocks are fetched by number. Knows keys before rotation and counts the bytes it moves; knows nothing about attention.
"""

import tempfile
from dataclasses import dataclass, field, replace
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from shared.lm.host_transfer import to_host

Home = Literal["device", "cpu", "disk"]


def resolve_home(offload: bool | str) -> Home:
    """Parse the option `offload`: False keeps blocks on the device, True is `cpu`.

    Raises:
        ValueError: It is neither a boolean nor `cpu` or `disk` (or `none`).
    """
    known: dict[bool | str, Home] = {False: "device", True: "cpu", "none": "device", "cpu": "cpu", "disk": "disk"}
    if offload not in known:
        raise ValueError(f"offload must be one of none, cpu, disk, not {offload!r}")
    return known[offload]


@dataclass(eq=False, slots=True)
class BlockStore:
    """Full blocks of one layer, oldest first; with a capacity the oldest go.

    Attributes:
        home: Where blocks are kept.
        capacity: Most blocks that are held.
        first_block: Absolute number of the oldest block that is still held.
        moved_bytes: Bytes that were fetched from another home than the device.
        blocks: Keys and values of each block [B,H,2,L+1,d].
        keys: Landmark key of each block [B,H,d].
    """

    home: Home = "device"
    capacity: int | None = None
    first_block: int = 0
    moved_bytes: int = 0
    blocks: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    _stacked: Tensor | None = field(default=None, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def landmarks(self) -> Tensor:
        """Keys of the landmarks [B,H,n,d], always on the device: the index."""
        if self._stacked is None:
            self._stacked = torch.stack(self.keys, 2)
        return self._stacked

    @property
    def means(self) -> Tensor:
        """Mean key of each block's ordinary tokens [B,H,n,d]: an index without landmarks, to compare with."""
        return torch.stack([block[:, :, 0, :-1].mean(2) for block in self.blocks], 2).to(self.keys[0].device)

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and landmarks held, wherever they are."""
        return sum(tensor.nbytes for tensor in (*self.blocks, *self.keys))

    def append(self, k: Tensor, v: Tensor) -> None:
        """Store whole blocks; k and v are [B,H,m,L+1,d], the landmark last."""
        self._stacked = None
        for keys, values in zip(k.unbind(2), v.unbind(2), strict=True):
            self.keys.append(keys[:, :, -1].clone())
            self.blocks.append(self._place(torch.stack((keys, values), 2)))
        while self.capacity is not None and len(self.blocks) > self.capacity:
            del self.blocks[0], self.keys[0]
            self.first_block += 1

    def fetch(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B,H,t,k,L+1,d] of the blocks `chosen` [B,H,t,k], numbered from the oldest held."""
        like = self.keys[0]
        unique, index = torch.unique(chosen, return_inverse=True)
        blocks = torch.stack([self.blocks[j] for j in unique.tolist()], 2).to(like.device)  # [B,H,m,2,L+1,d]
        B, H, t, k = chosen.shape
        found = blocks.flatten(3).take_along_dim(index.view(B, H, t * k, 1), 2).view(B, H, t, k, *blocks.shape[3:])
        if self.home != "device":
            self.moved_bytes += found.nbytes
        return found[..., 0, :, :], found[..., 1, :, :]

    def to_tensor(self) -> Tensor | None:
        """All blocks [n,B,H,2,L+1,d] in main memory, keys then values; None where there are none."""
        return torch.stack([to_host(block) for block in self.blocks]) if self.blocks else None

    def load(self, blocks: Tensor, first: int) -> None:
        """Replace the content by blocks [n,B,H,2,L+1,d], the oldest of which has the number `first`."""
        self.first_block, self._stacked = first, None
        self.keys = [block[:, :, 0, -1].clone() for block in blocks]
        # Each is a copy of its own: a slice would keep the whole tensor alive when the oldest blocks go.
        self.blocks = [self._place(block.clone()) for block in blocks]

    def fork(self) -> Self:
        """An independent copy; blocks are never written again, so both hold the same ones."""
        return replace(self, moved_bytes=0, blocks=list(self.blocks), keys=list(self.keys))

    def _place(self, block: Tensor) -> Tensor:
        """Move a block to its home."""
        if self.home == "disk":
            # An unlinked file: the mapping keeps it alive and its bytes go when the last holder of the block goes.
            with tempfile.TemporaryFile() as file:
                mapped = np.memmap(file, dtype=np.uint8, mode="w+", shape=(block.nbytes,))
            mapped[:] = to_host(block).contiguous().view(torch.uint8).flatten().numpy()
            return torch.from_numpy(mapped).view(block.dtype).view(block.shape)
        return to_host(block) if self.home == "cpu" else block
