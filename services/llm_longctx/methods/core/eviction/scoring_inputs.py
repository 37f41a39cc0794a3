"""Inputs of eviction scores besides a head's own entries: summaries, rotations, the output matrix.

Knows tensors; knows no score and no cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.lm.config import DecoderConfig
from shared.lm.host_transfer import take_rows
from shared.lm.rope import frequencies


@dataclass(frozen=True, slots=True, eq=False)
class ScoringInputs:
    """Inputs of one layer's scores besides queries, keys and values.

    Attributes:
        kv_heads: Which key/value heads are scored.
        theta: Angle per position of each rotary pair [d/2]; None where keys are not rotated.
        summary: Result of `EvictionMethod.summarize` over all tokens.
        output: The output matrix [D,H·d], where the method needs it.
    """

    kv_heads: tuple[int, ...]
    theta: Tensor | None = None
    summary: object = None
    output: Tensor | None = None


def rotary_angles(config: DecoderConfig, device: torch.device) -> Tensor | None:
    """Angles of a model's layers [d/2]; None where positions are embedded."""
    return None if config.path == "gpt2" else frequencies(config, device)


def split_output(output: Tensor, kv_heads: Sequence[int], group: int, d: int) -> Tensor:
    """An output matrix's columns by key/value head: [D,H·d] → [G',R,D,d]."""
    by_head = output.reshape(len(output), -1, d).movedim(1, 0)
    mine = take_rows(by_head, [g * group + i for g in kv_heads for i in range(group)])
    return mine.view(len(kv_heads), group, len(output), d)


def value_norms(v: Tensor, columns: Tensor) -> Tensor:
    """How much values add to the residual stream: mean over a group of the L1 norm of W v.

    Source: CriticalKV (2025).

    Args:
        v: Values [G,n,d].
        columns: Each head's part of the output matrix [G,R,D,d].

    Returns:
        [G,n], float32 or wider.
    """
    wide = torch.promote_types(v.dtype, torch.float32)
    rows = []
    for values, group in zip(v.to(wide), columns.to(wide), strict=True):
        rows.append(torch.stack([(values @ one.T).abs().sum(-1) for one in group]).mean(0))
    return torch.stack(rows)
