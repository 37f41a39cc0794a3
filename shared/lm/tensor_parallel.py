"""Tensor parallelism: a decoder's heads and MLP channels, divided among processes that sum their layers' outputs.

Each process holds whole heads and their part of the two matrices behind them; embeddings, norms and logits are whole in
all of them, so every process computes the same logits. Knows decoders; knows nothing about caches or requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, distributed, nn

from fovea.errors import InvalidOption
from shared.lm.decoder import Decoder
from shared.lm.ops import NormLayer, Ops, OpsAround
from shared.lm.weights import build_without_weights

_BY_ROWS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
"""Layers whose outputs are divided: each process has some of them."""

_BY_COLUMNS = ("o_proj", "down_proj")
"""Layers whose inputs are divided: their outputs are summed."""


@dataclass(frozen=True, slots=True)
class Team:
    """The processes that run one decoder together, and which of them this one is.

    Attributes:
        rank: From 0 on.
        size: How many there are.
        group: Of torch.distributed, for sums on the decoder's device; None is its default group.
    """

    rank: int
    size: int
    group: Any = None


def take_shard(model: Decoder, team: Team) -> Decoder:
    """Return a process's part of a decoder, as a decoder of fewer heads, of copies; `InvalidOption` if it can't be."""
    config = model.config
    if config.path == "gpt2":
        detail = "A GPT-2 can't be divided among processes: its queries, keys and values are one matrix."
        raise InvalidOption(detail, hint="Serve it on one GPU.", field="llm_tensor_parallel")
    for name in ("heads", "kv_heads", "hidden"):
        if getattr(config, name) % team.size:
            detail = f"{team.size} processes can't share {getattr(config, name)} {name} evenly."
            hint = f"Divisors of {config.kv_heads} key/value heads are possible."
            raise InvalidOption(detail, hint=hint, field="llm_tensor_parallel")
    sizes = {name: getattr(config, name) // team.size for name in ("heads", "kv_heads", "hidden")}
    shard = build_without_weights(replace(config, **sizes))
    state = {name: _part(name, x, team) for name, x in model.state_dict().items()}
    shard.load_state_dict(state, assign=True)
    return shard.eval().requires_grad_(requires_grad=False)


def _part(name: str, x: Tensor, team: Team) -> Tensor:
    *_, layer, kind = name.split(".")
    if layer in _BY_ROWS:
        return x.chunk(team.size)[team.rank].clone()
    if layer in _BY_COLUMNS:
        if kind == "bias":  # it is added once
            return x.clone() if team.rank == 0 else torch.zeros_like(x)
        return x.chunk(team.size, 1)[team.rank].clone()
    return x


class SummedOps(OpsAround):
    """`shared.lm.ops.Ops` of a shard: what layers with divided inputs give is summed over the team."""

    def __init__(self, inner: Ops, team: Team, model: Decoder) -> None:
        """Take the operations that compute this process's part."""
        super().__init__(inner)
        self._group = team.group
        named = model.named_modules()
        self._summed = {part for name, part in named if name.rpartition(".")[2] in _BY_COLUMNS}

    def products(
        self, x: Tensor, layers: Sequence[nn.Linear], norm: NormLayer | None = None, *, added: bool = False
    ) -> list[Tensor]:
        found = self._inner.products(x, layers, norm, added=added)
        for layer, one in zip(layers, found, strict=True):
            if layer in self._summed:
                distributed.all_reduce(one, group=self._group)
        return found
