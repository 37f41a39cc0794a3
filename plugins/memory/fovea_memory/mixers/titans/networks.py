"""Titans language models and their sessions, whose state is of constant size.

The forward pass is a session that is fed once. Knows layers by `forward` and `initial_state`; there is no official
checkpoint, so state-dict keys are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Self, cast

import torch
from torch import Tensor, nn

from fovea_memory.mixers.titans.layers import LAYOUTS, LayerState, Layout, TitansConfig, TitansLayer
from fovea_memory.mixers.titans.state import MAX_STATE_BYTES, SessionState, StateError, pack_state, unpack_state
from shared.lm.blocks import RMSNorm
from shared.lm.host_transfer import to_device
from shared.registry import builder


class TitansLM(nn.Module):
    """A language model with a memory in every layer.

    Args:
        layout: How memory and attention meet.
        vocab, layers: Sizes V and L.
        config: Sizes of a layer.

    Raises:
        ValueError: A session would hold more than `MAX_STATE_BYTES` bytes.
    """

    def __init__(self, layout: Layout, vocab: int, layers: int, config: TitansConfig) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, config.width)
        self.layers = nn.ModuleList(LAYOUTS[layout](config) for _ in range(layers))
        self.norm, self.head = RMSNorm(config.width, 1e-6), nn.Linear(config.width, vocab, bias=False)
        nn.init.normal_(self.embed.weight, std=0.02)
        if (size := self.session(1).nbytes) > MAX_STATE_BYTES:
            raise ValueError(f"a session of this model would hold {size:,} bytes; {MAX_STATE_BYTES:,} are allowed")

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [B,T,V] of ids [B,T]."""
        return self.step(ids, self.initial_state(ids.shape[0]), 0)[0]

    def initial_state(self, batch: int) -> list[LayerState]:
        """States of all layers before the first token."""
        return [cast("TitansLayer", layer).initial_state(batch) for layer in self.layers]

    def step(self, ids: Tensor, states: list[LayerState], index: int) -> tuple[Tensor, list[LayerState], Tensor]:
        """Logits of the tokens behind `index` others, the new states, and what each layer did with them [B,t,L,3]."""
        x, after, surprises = self.embed(ids), [], []
        for layer, state in zip(self.layers, states, strict=True):
            x, new, surprise = layer(x, state, index)
            after.append(new)
            surprises.append(surprise)
        return self.head(self.norm(x)), after, torch.stack(surprises, 2)

    def session(self, batch: int = 1) -> TitansSession:
        """Start a stream."""
        return TitansSession(self, self.initial_state(batch), 0, batch)

    def restore(self, data: bytes, model: str = "") -> TitansSession:
        """The stream that `TitansSession.export` wrote.

        Raises:
            StateError: The bytes are damaged or of another model.
        """
        state = unpack_state(data, model)
        return TitansSession(self, self._split_by_layer(state), state.index, state.batch)

    def _split_by_layer(self, state: SessionState) -> list[LayerState]:
        """A session's tensors by layer, if this model has the same but for the batch.

        Raises:
            StateError: Names or sizes differ.
        """
        needed = state.batch * _bytes(TitansSession(self, self.initial_state(1), 0, 1).state.tensors)
        if needed > (given := _bytes(state.tensors)):  # before room is made for as many streams as the bytes claim
            raise StateError(f"the state does not fit this model: it has {given:,} bytes, {needed:,} are needed")
        like = TitansSession(self, self.initial_state(state.batch), 0, state.batch).state.tensors
        ours, theirs = ({name: (*t.shape, t.dtype) for name, t in tensors.items()} for tensors in (like, state.tensors))
        if ours != theirs:
            odd = next(name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name))
            message = f"the state does not fit this model: {odd} is {theirs.get(odd)}, {ours.get(odd)} is needed"
            raise StateError(message)
        layers: list[LayerState] = [{} for _ in self.layers]
        for name, tensor in state.tensors.items():
            layer, _, key = name.partition(".")
            layers[int(layer)][key] = to_device(tensor, self.head.weight.device)
        return layers


class TitansSession:
    """State of a stream of tokens.

    Attributes:
        index: Tokens read.
        batch: Streams side by side.
        trace: Effect of the last call's tokens on each layer's memory [B,t,L,3], means over its heads: the error before
            its rate (the surprise), the rate theta, and the share alpha that was forgotten.
    """

    def __init__(self, net: TitansLM, states: list[LayerState], index: int, batch: int) -> None:
        self.net, self.index, self.batch = net, index, batch
        self.trace = net.head.weight.new_zeros(0)
        self._states = states

    @torch.no_grad()
    def feed(self, ids: Tensor) -> Tensor:
        """Read ids [B,t]; their logits [B,t,V]."""
        if not ids.shape[1]:
            return self.net.head.weight.new_zeros(*ids.shape, self.net.head.out_features)
        logits, self._states, self.trace = self.net.step(ids, self._states, self.index)
        self.index += ids.shape[1]
        return logits

    def fork(self) -> Self:
        """An independent copy; states are never changed in place."""
        return type(self)(self.net, self._states, self.index, self.batch)

    def export(self, model: str = "", version: int = 0) -> bytes:
        """Serialise the state, as bytes of constant length.

        Raises:
            StateError: The memory is not finite.
        """
        return pack_state(self.state, model, version)

    @property
    def state(self) -> SessionState:
        """The state by tensor names."""
        tensors = {f"{i}.{key}": t for i, layer in enumerate(self._states) for key, t in sorted(layer.items())}
        return SessionState(self.index, self.batch, tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of the state."""
        return sum(t.nbytes for t in self.state.tensors.values())


def _make_builder(layout: Layout) -> Callable[..., TitansLM]:
    """The builder of one layout, found by its name; see `TitansConfig`."""

    @builder(f"titans-{layout}")
    def build(
        vocab: int,
        width: int,
        layers: int,
        heads: int,
        segment: int = 32,
        window: int = 32,
        persistent: int = 4,
        depth: int = 1,
        refresh: int = 16,
    ) -> TitansLM:
        return TitansLM(layout, vocab, layers, TitansConfig(width, heads, segment, window, persistent, depth, refresh))

    return build


titans_mac, titans_mag, titans_mal, titans_lmm, titans_attention = map(_make_builder, LAYOUTS)


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
