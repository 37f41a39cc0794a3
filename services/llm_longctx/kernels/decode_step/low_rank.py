"""Adapters as the C++ decode step reads them: a table of low-rank matrices for each, by layer and place."""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from shared.lm.decoder import Decoder
from shared.lm.lora import PLACES, LoraAdapter

_STRIP = 16


class AdapterTable:
    """One adapter: rank and addresses of both matrices, float32, for each of a decoder's matrices.

    Attributes:
        address: Of the table.
        rank: The largest.
    """

    def __init__(self, adapter: LoraAdapter, model: Decoder) -> None:
        self._kept: list[Tensor] = []
        self.rank = 0
        words: list[int] = []
        for block in model.blocks:
            for place in PLACES:
                part = adapter.parts.get(block.get_submodule(place))  # type: ignore[attr-defined]  # blocks are modules
                if part is None:
                    words += 0, 0, 0
                    continue
                rank = part.down.shape[0]
                self.rank = max(self.rank, rank)
                words += rank, self._keep(part.down.float()), self._keep(_to_strips(part.up.float()))
        self._words = np.array(words, np.int64)
        self.address = self._words.ctypes.data

    def _keep(self, tensor: Tensor) -> int:
        self._kept.append(tensor := tensor.contiguous())
        return tensor.data_ptr()


class AdapterTables:
    """Tables of the adapters that are in use, each made once."""

    def __init__(self, model: Decoder) -> None:
        self._model = model
        self._made: WeakKeyDictionary[LoraAdapter, AdapterTable] = WeakKeyDictionary()

    def find(self, adapters: Sequence[LoraAdapter | None]) -> list[AdapterTable | None]:
        """A table for each row of a step; none at all where no row has an adapter."""
        if not any(adapters):
            return []
        return [None if one is None else self._find_one(one) for one in adapters]

    def _find_one(self, adapter: LoraAdapter) -> AdapterTable:
        if (found := self._made.get(adapter)) is None:
            found = self._made[adapter] = AdapterTable(adapter, self._model)
        return found


def _to_strips(up: Tensor) -> Tensor:
    """[out,r] → strips of 16 rows [strips,r,16], filled up with zeros."""
    filled = functional.pad(up, (0, 0, 0, -up.shape[0] % _STRIP))
    return torch.stack(torch.split(filled, _STRIP)).transpose(1, 2)
