"""Titans layers: a neural memory as context (MAC), gate (MAG), layer (MAL) or alone (LMM), and a twin without one.

The layouts of section 4 of the paper, made causal token by token. A layer is a pure function of x [B,t,D] and a state:
named tensors of constant size that begin as `initial_state`. Axes: H heads, d head width, P persistent tokens,
C segment, W window. Knows nothing about vocabularies and sessions.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fovea_memory.mixers.rope import rotate_halves
from fovea_memory.mixers.titans.memory import TitansMemory
from fovea_memory.mixers.titans.state import from_tensors, to_tensors
from shared.lm.blocks import RMSNorm

Layout = Literal["mac", "mag", "mal", "lmm", "attention"]
"""`attention` is MAC without a memory: the twin that shows what the memory is worth."""

LayerState = dict[str, Tensor]
LayerOutput = tuple[Tensor, LayerState, Tensor]
"""x behind the layer, the new state, and what the memory did with each token [B,t,3]: error, rate, share forgotten."""

_MAX_RATE, _CLAMP, _EPS = 0.1, 1.0, 1e-6


@dataclass(frozen=True, slots=True)
class TitansConfig:
    """Sizes of a Titans layer; each head has a memory of its own, of this depth and refresh."""

    width: int
    heads: int
    segment: int
    window: int
    persistent: int
    depth: int
    refresh: int


class PersistentAttention(nn.Module):
    """Attention over P learned persistent tokens, visible to all, and the keys that are passed in."""

    def __init__(self, config: TitansConfig) -> None:
        super().__init__()
        self.heads, D = config.heads, config.width
        self.to_qkv = nn.Linear(D, 3 * D, bias=False)
        self.to_out = nn.Linear(D, D, bias=False)
        self.persistent = nn.Parameter(torch.randn(2, self.heads, config.persistent, D // self.heads) * 0.02)

    def project(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v [B,H,t,d] of z [B,t,D], not rotated."""
        q, k, v = self.to_qkv(z).view(*z.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return q, k, v

    def mix(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        """Attend [B,t,D]; q and k are rotated, `visible` [t,s] says which keys."""
        first_k, first_v = (part.expand(q.shape[0], -1, -1, -1) for part in self.persistent)
        visible = torch.cat((visible.new_ones(visible.shape[0], first_k.shape[2]), visible), 1)
        keys, values = torch.cat((first_k, k), 2), torch.cat((first_v, v), 2)
        mixed = functional.scaled_dot_product_attention(q, keys, values, attn_mask=visible)
        out: Tensor = self.to_out(mixed.transpose(1, 2).flatten(2))
        return out


class _FeedForward(nn.Module):
    """SwiGLU behind a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = 8 * width // 3
        self.norm = RMSNorm(width, _EPS)
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(x)
        added: Tensor = self.down(functional.silu(self.gate(z)) * self.up(z))
        return added


class _Memory(TitansMemory):
    """The paper's memory, bounded; its state travels by name."""

    def __init__(self, config: TitansConfig) -> None:
        sizes = {name: getattr(config, name) for name in ("width", "heads", "depth", "refresh")}
        super().__init__("paper", **sizes, max_rate=_MAX_RATE, clamp=_CLAMP)

    def write(self, x: Tensor, state: LayerState, index: int) -> LayerOutput:
        """Store x [B,t,D] token by token; the memory's output for each."""
        parts = ("rest", "weights.", "momentum.", "base.", "tails.")
        own = from_tensors({key: t for key, t in state.items() if key.startswith(parts)}, index)
        out, after, trace = self.forward_with_trace(x, own)
        return out, to_tensors(after), torch.stack((trace.loss, trace.rate, trace.forgotten), -1).mean(1)


class TitansLayer(nn.Module):
    """A layer of any layout: a norm, something that mixes tokens, and a SwiGLU."""

    def __init__(self, config: TitansConfig) -> None:
        super().__init__()
        self.config = config
        self.norm = RMSNorm(config.width, _EPS)
        self.feed = _FeedForward(config.width)

    def forward(self, x: Tensor, state: LayerState, index: int) -> LayerOutput:
        """Read x [B,t,D] behind `index` tokens; the given state is left as it is."""
        added, after, surprise = self.mix(self.norm(x), state, index)
        x = x + added
        return x + self.feed(x), after, surprise

    @abstractmethod
    def mix(self, z: Tensor, state: LayerState, index: int) -> LayerOutput:
        """Output of the token mixer for z = norm(x); it is added to x."""

    @abstractmethod
    def initial_state(self, batch: int) -> LayerState:
        """The state before the first token."""

    def _no_keys(self, batch: int, room: int) -> Tensor:
        """Room for keys and values [2,B,H,room,d]."""
        heads = self.config.heads
        return self.norm.weight.new_zeros(2, batch, heads, room, self.config.width // heads)


class LMM(TitansLayer):
    """The memory alone: x += memory(z)."""

    def __init__(self, config: TitansConfig) -> None:
        super().__init__(config)
        self.memory = _Memory(config)

    def mix(self, z: Tensor, state: LayerState, index: int) -> LayerOutput:
        return self.memory.write(z, state, index)

    def initial_state(self, batch: int) -> LayerState:
        return to_tensors(self.memory.initial_state(batch))


class _Windowed(TitansLayer):
    """A memory and a sliding window: each token sees itself and the W - 1 before it."""

    def __init__(self, config: TitansConfig) -> None:
        super().__init__(config)
        self.memory, self.attention = _Memory(config), PersistentAttention(config)
        self.norm_1 = RMSNorm(config.width, _EPS)

    def initial_state(self, batch: int) -> LayerState:
        return {**to_tensors(self.memory.initial_state(batch)), "keys": self._no_keys(batch, self.config.window - 1)}

    def window(self, z: Tensor, state: LayerState, index: int) -> tuple[Tensor, LayerState]:
        """Attention of z [B,t,D] over the window, and the keys to keep: the last W - 1, at the end of their room."""
        room, t = self.config.window - 1, z.shape[1]
        held = min(index, room)
        q, k, v = self.attention.project(z)
        kept = torch.cat((state["keys"][..., room - held :, :], torch.stack((k, v))), 3)
        at = torch.arange(index - held, index + t, device=z.device)
        ago = at[held:, None] - at
        mixed = self.attention.mix(
            rotate_halves(q, at[held:]), rotate_halves(kept[0], at), kept[1], (ago >= 0) & (ago <= room)
        )
        last = kept[..., max(held + t - room, 0) :, :]
        return mixed, {"keys": functional.pad(last, (0, 0, room - last.shape[3], 0))}


class MAG(_Windowed):
    """The memory as a gate: x += norm(window) · sigmoid(norm(memory))."""

    def __init__(self, config: TitansConfig) -> None:
        super().__init__(config)
        self.norm_2 = RMSNorm(config.width, _EPS)

    def mix(self, z: Tensor, state: LayerState, index: int) -> LayerOutput:
        mixed, keys = self.window(z, state, index)
        out, after, surprise = self.memory.write(z, state, index)
        return self.norm_1(mixed) * torch.sigmoid(self.norm_2(out)), {**after, **keys}, surprise


class MAL(_Windowed):
    """The memory as a layer: x += window(norm(memory))."""

    def mix(self, z: Tensor, state: LayerState, index: int) -> LayerOutput:
        out, after, surprise = self.memory.write(z, state, index)
        mixed, keys = self.window(self.norm_1(out), state, index)
        return mixed, {**after, **keys}, surprise


class Segments(TitansLayer):
    """Attention inside segments of C tokens, and nothing from one to the next."""

    sides = 1
    """Kinds of keys that are kept."""

    def __init__(self, config: TitansConfig) -> None:
        super().__init__(config)
        self.attention = PersistentAttention(config)

    def initial_state(self, batch: int) -> LayerState:
        return {"keys": self._no_keys(batch, self.sides * self.config.segment)}

    def mix(self, z: Tensor, state: LayerState, index: int) -> LayerOutput:
        outs, surprises = [], []
        for part in _split_segments(z, index, self.config.segment):
            out, state, surprise = self.segment(part, state, index)
            outs.append(out)
            surprises.append(surprise)
            index += part.shape[1]
        return torch.cat(outs, 1), state, torch.cat(surprises, 1)

    def segment(self, z: Tensor, state: LayerState, index: int) -> LayerOutput:
        """Tokens z [B,t,D] of one segment, or of a part of it."""
        mixed, keys = self.attend(z, [], state, index)
        return mixed, {"keys": keys}, z.new_zeros(*z.shape[:2], 3)

    def attend(self, z: Tensor, recalled: list[Tensor], state: LayerState, index: int) -> tuple[Tensor, Tensor]:
        """Attention of z over its segment, and over what was `recalled` [B,t,D] for the segment's tokens.

        Returns:
            The mix, and the keys to keep [2,B,H,C,d] per kind.
        """
        C, t = self.config.segment, z.shape[1]
        held = index % C
        at = torch.arange(held + t, device=z.device)
        q, k, v = self.attention.project(z)
        old = torch.split(state["keys"], C, 3)
        new = [*(torch.stack(self.attention.project(part)[1:]) for part in recalled), torch.stack((k, v))]
        kinds = [torch.cat((was[..., :held, :], now), 3) for was, now in zip(old, new, strict=True)]
        keys = torch.cat([rotate_halves(kind[0], at) for kind in kinds], 2)
        values = torch.cat([kind[1] for kind in kinds], 2)
        visible = (at[held:, None] >= at).repeat(1, len(kinds))
        mixed = self.attention.mix(rotate_halves(q, at[held:]), keys, values, visible)
        return mixed, torch.cat([functional.pad(kind, (0, 0, 0, C - held - t)) for kind in kinds], 3)


class MAC(Segments):
    """The memory as context: a segment attends to what the memory knew when it began, and to itself; x += y · r.

    The memory is queried with each token's own query; y is the attention's answer, which the memory then
    stores, and r what it says to it.
    """

    sides = 2

    def __init__(self, config: TitansConfig) -> None:
        super().__init__(config)
        self.memory = _Memory(config)

    def initial_state(self, batch: int) -> LayerState:
        own = to_tensors(self.memory.initial_state(batch))
        return {**super().initial_state(batch), **own, **_segment_start(own)}

    def segment(self, z: Tensor, state: LayerState, index: int) -> LayerOutput:
        fresh = index % self.config.segment == 0
        began = _segment_start(state) if fresh else {key: t for key, t in state.items() if key.startswith("began.")}
        mixed, keys = self.attend(z, [self.memory.recall(z, list(began.values()))], state, index)
        out, after, surprise = self.memory.write(mixed, state, index)
        return mixed * out, {"keys": keys, **after, **began}, surprise


LAYOUTS: Mapping[Layout, type[TitansLayer]] = {"mac": MAC, "mag": MAG, "mal": MAL, "lmm": LMM, "attention": Segments}


def _segment_start(state: LayerState) -> LayerState:
    """The memory's weights now, under the names that they have as those of the segment's start."""
    return {key.replace("weights", "began"): t for key, t in state.items() if key.startswith("weights.")}


def _split_segments(x: Tensor, index: int, size: int) -> Iterator[Tensor]:
    """Cut x [B,t,D] where segments of the stream end."""
    at = 0
    while at < x.shape[1]:
        end = at + size - (index + at) % size
        yield x[:, at:end]
        at = end
