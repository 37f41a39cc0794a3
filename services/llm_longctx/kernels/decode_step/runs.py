"""Entry runs: what each row of a decode step reads and where it writes, for all layers at once."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from services.llm_longctx.kernels.packed_pages.layout import CACHE_FORMATS


@dataclass(frozen=True, slots=True, eq=False)
class EntryRuns:
    """Runs of entries in stores; row b·G + g is sequence b's key/value head g.

    Attributes:
        keys, values: Stores [entries,d] in the decoder's type.
        log_weights: Store [entries] float32.
        slots: Where the step's own entries go [L,R] int64.
        start, n: First entry and length of each run [parts,L,R] int64, `n` 0 where there is none.
        weighted: Whether log-weights count [parts,L,R] bool.
        bits: Of the entries of each row's part [parts,R] uint8; 0 for whole ones, else a format.
        packed: Packed pages [pages,bytes] and log-weights [entries] float32 by format.
    """

    keys: Tensor
    values: Tensor
    log_weights: Tensor
    slots: np.ndarray
    start: np.ndarray
    n: np.ndarray
    weighted: np.ndarray
    bits: np.ndarray
    packed: Mapping[int, tuple[Tensor, Tensor]]

    def words(self) -> list[int]:
        """Addresses and sizes in the order of the C++ function."""
        slots, start, n, weighted, bits = (
            at.ctypes.data for at in (self.slots, self.start, self.n, self.weighted, self.bits)
        )
        stores = (self.keys.data_ptr(), self.values.data_ptr(), self.log_weights.data_ptr())
        pages, weights = (
            [self.packed[b][i].data_ptr() if b in self.packed else 0 for b in CACHE_FORMATS] for i in (0, 1)
        )
        return [slots, len(self.start), start, n, weighted, bits, *stores, *pages, *weights]
