"""Block-sparse mask in compressed sparse rows: which key blocks each block of queries reads.

Rows are blocks of queries counted from position 0 of the sequence, columns blocks of keys. Only causal blocks are kept;
inside a block that touches the diagonal a kernel stays token-causal by itself. Knows nothing about how blocks are
chosen, nor about tensors of queries and keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, slots=True)
class BlockCsr:
    """Kept blocks of h heads: h = kv heads (the whole group shares them) or query heads.

    Attributes:
        row_ptr: [h, rows + 1] int32, offsets into `cols`.
        cols: int32, key blocks in ascending order within a row.
        block: Tokens of a block of queries.
        key_block: Tokens of a block of keys.
        first: Number of the first block of queries: 0, or where a chunk of a longer prompt begins.
    """

    row_ptr: Tensor
    cols: Tensor
    block: int
    key_block: int
    first: int = 0

    @classmethod
    def from_mask(cls, mask: Tensor, block: int, *, key_block: int | None = None, first: int = 0) -> BlockCsr:
        """Keep the causal part of a mask.

        Args:
            mask: [h, rows, columns] bool.
            block: Tokens of a block of queries.
            key_block: Tokens of a block of keys; default as `block`.
            first: Number of the first block of queries.

        Raises:
            ValueError: The mask is not a boolean [h, rows, columns], or a size is not positive.
        """
        key_block = block if key_block is None else key_block
        if mask.dim() != 3 or mask.dtype != torch.bool or block < 1 or key_block < 1 or first < 0:
            message = f"a mask is bool [h, rows, columns] over blocks of 1 or more, not {mask.dtype} {list(mask.shape)}"
            raise ValueError(message)
        kept = mask & causal_blocks(mask.shape[1], mask.shape[2], block, key_block, first, mask.device)
        ends = kept.sum(-1).flatten().cumsum(0).view(mask.shape[:2])
        begin = torch.cat((ends.new_zeros(1), ends[:-1, -1]))[:, None] if ends.numel() else ends.new_zeros(len(mask), 1)
        row_ptr = torch.cat((begin, ends), -1).int()
        return cls(row_ptr, kept.nonzero()[:, 2].int(), block, key_block, first)

    @classmethod
    def dense(cls, heads: int, tokens: int, block: int) -> BlockCsr:
        """All causal blocks of a prompt of `tokens`."""
        rows = -(-tokens // block)
        return cls.from_mask(torch.ones(heads, rows, rows, dtype=torch.bool, device="cpu"), block)

    @property
    def heads(self) -> int:
        """How many heads have rows of their own."""
        return self.row_ptr.shape[0]

    @property
    def rows(self) -> int:
        """Blocks of queries."""
        return self.row_ptr.shape[1] - 1

    def mask(self, columns: int) -> Tensor:
        """The kept blocks as bool [h, rows, columns]."""
        kept = torch.zeros(self.heads, self.rows, columns, dtype=torch.bool, device="cpu")
        counts = (self.row_ptr[:, 1:] - self.row_ptr[:, :-1]).flatten().long().cpu()
        rows = torch.repeat_interleave(torch.arange(self.heads * self.rows, device="cpu"), counts)
        kept.view(-1, columns)[rows, self.cols.long().cpu()] = True
        return kept

    def density(self) -> float:
        """Kept blocks over causal blocks, all heads together."""
        last = ((torch.arange(self.first, self.first + self.rows, device="cpu") + 1) * self.block - 1) // self.key_block
        causal = int((last + 1).sum()) * self.heads
        return self.cols.numel() / causal if causal else 1.0


def causal_blocks(
    rows: int, columns: int, block: int, key_block: int, first: int = 0, device: torch.device | str = "cpu"
) -> Tensor:
    """Blocks in which some query of the row may see some key of the column: bool [rows, columns]."""
    last_query = (torch.arange(first, first + rows, device=device)[:, None] + 1) * block - 1
    return torch.arange(columns, device=device) * key_block <= last_query
