"""Language models of memory layers, and sessions: what they remember of a stream is of constant size.

The forward pass is a session that is fed once. Knows layers by their two verbs; there is no official checkpoint, so
state-dict keys are ours.
"""

from __future__ import annotations

from typing import Self, cast

import torch
from torch import Tensor, nn

from services.llm_longctx.mixers.titans.layers import LAYOUTS, Facts, Layer, LayerState, Layout
from services.llm_longctx.mixers.titans.state import MOST, SessionState, StateError, pack_state, unpack_state
from shared.lm.blocks import RMSNorm
from shared.registry import builder

__all__ = ["TitansLM", "TitansSession", "titans_attention", "titans_lmm", "titans_mac", "titans_mag", "titans_mal"]


class TitansLM(nn.Module):
    """A language model with a memory in every layer.

    Args:
        layout: How memory and attention meet.
        vocab, layers: Sizes V and L.
        facts: Sizes of a layer.

    Raises:
        ValueError: A session would hold more than `titans.MOST` bytes.
    """

    def __init__(self, layout: Layout, vocab: int, layers: int, facts: Facts) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, facts.width)
        self.layers = nn.ModuleList(LAYOUTS[layout](facts) for _ in range(layers))
        self.norm, self.head = RMSNorm(facts.width, 1e-6), nn.Linear(facts.width, vocab, bias=False)
        nn.init.normal_(self.embed.weight, std=0.02)
        if (size := self.session(1).nbytes) > MOST:
            message = f"a session of this model would hold {size:,} bytes; {MOST:,} are allowed"
            raise ValueError(message)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [B,T,V] of ids [B,T]."""
        return self.run(ids, self.start(ids.shape[0]), 0)[0]

    def start(self, batch: int) -> list[LayerState]:
        """States before the first token."""
        return [cast("Layer", layer).start(batch) for layer in self.layers]

    def run(self, ids: Tensor, states: list[LayerState], index: int) -> tuple[Tensor, list[LayerState], Tensor]:
        """Logits of the tokens behind `index` others, the new states, and what each layer did with them [B,t,L,3]."""
        x, after, surprises = self.embed(ids), [], []
        for layer, state in zip(self.layers, states, strict=True):
            x, new, surprise = layer(x, state, index)
            after.append(new)
            surprises.append(surprise)
        return self.head(self.norm(x)), after, torch.stack(surprises, 2)

    def session(self, batch: int = 1) -> TitansSession:
        """A new stream."""
        return TitansSession(self, self.start(batch), 0, batch)

    def restore(self, data: bytes, model: str = "") -> TitansSession:
        """The stream that `TitansSession.export` wrote.

        Raises:
            StateError: The bytes are damaged or of another model.
        """
        state = unpack_state(data, model)
        if not isinstance(state, SessionState):
            message = "this is the state of a memory, not of a session"
            raise StateError(message)
        return TitansSession(self, self._parted(state), state.index, state.batch)

    def _parted(self, state: SessionState) -> list[LayerState]:
        """A session's tensors by layer, if this model has the same but for the batch.

        Raises:
            StateError: Names or sizes differ.
        """
        like = TitansSession(self, self.start(state.batch), 0, state.batch).state.tensors
        ours, theirs = ({name: (*t.shape, t.dtype) for name, t in tensors.items()} for tensors in (like, state.tensors))
        if ours != theirs:
            odd = next(name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name))
            message = f"the state does not fit this model: {odd} is {theirs.get(odd)}, {ours.get(odd)} is needed"
            raise StateError(message)
        layers: list[LayerState] = [{} for _ in self.layers]
        for name, tensor in state.tensors.items():
            layer, _, key = name.partition(".")
            layers[int(layer)][key] = tensor
        return layers


class TitansSession:
    """A stream of tokens and what the model remembers of it.

    Attributes:
        index: Tokens read.
        batch: Streams side by side.
        trace: What the last call's tokens did to each layer's memory [B,t,L,3], means over its heads: the error before
            its rate (the surprise), the rate theta, and the share alpha that was forgotten.
    """

    def __init__(self, net: TitansLM, states: list[LayerState], index: int, batch: int) -> None:
        self.net, self.index, self.batch = net, index, batch
        self.trace = torch.zeros(0)
        self._states = states

    @torch.no_grad()
    def feed(self, ids: Tensor) -> Tensor:
        """Read ids [B,t]; their logits [B,t,V]."""
        if not ids.shape[1]:
            return self.net.head.weight.new_zeros(*ids.shape, self.net.head.out_features)
        logits, self._states, self.trace = self.net.run(ids, self._states, self.index)
        self.index += ids.shape[1]
        return logits

    def fork(self) -> Self:
        """A stream that goes its own way from here; states are never changed in place."""
        return type(self)(self.net, self._states, self.index, self.batch)

    def export(self, model: str = "", version: int = 0) -> bytes:
        """Everything that is remembered, as bytes of constant length.

        Raises:
            StateError: The memory is not finite.
        """
        return pack_state(self.state, model, version)

    @property
    def state(self) -> SessionState:
        """Everything that is remembered, by name."""
        tensors = {f"{i}.{key}": t for i, layer in enumerate(self._states) for key, t in sorted(layer.items())}
        return SessionState(self.index, self.batch, tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that are remembered."""
        return sum(t.nbytes for t in self.state.tensors.values())


@builder("titans-mac")
def titans_mac(
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
    """Memory as context: segments attend to what the memory knew when they began."""
    return TitansLM("mac", vocab, layers, Facts(width, heads, segment, window, persistent, depth, refresh))


@builder("titans-mag")
def titans_mag(
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
    """Memory as a gate on a sliding window."""
    return TitansLM("mag", vocab, layers, Facts(width, heads, segment, window, persistent, depth, refresh))


@builder("titans-mal")
def titans_mal(
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
    """Memory as a layer below a sliding window."""
    return TitansLM("mal", vocab, layers, Facts(width, heads, segment, window, persistent, depth, refresh))


@builder("titans-lmm")
def titans_lmm(
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
    """Memory alone."""
    return TitansLM("lmm", vocab, layers, Facts(width, heads, segment, window, persistent, depth, refresh))


@builder("titans-attention")
def titans_attention(
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
    """No memory: the attention of MAC inside its segments, to compare with."""
    return TitansLM("attention", vocab, layers, Facts(width, heads, segment, window, persistent, depth, refresh))
