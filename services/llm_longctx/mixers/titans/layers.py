"""Layers around a neural memory: as context (MAC), gate (MAG), layer (MAL), alone (LMM), and a twin without one.

The layouts of section 4 of the paper, made causal token by token. A layer is a pure function of x [B,t,D] and a state:
named tensors of constant size that start as `start` says. Axes: H heads, d head width, P persistent tokens, C segment,
W window. Knows nothing about vocabularies and sessions.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.llm_longctx.mixers.rope import turned_halves
from services.llm_longctx.mixers.titans.memory import TitansMemory
from services.llm_longctx.mixers.titans.state import named, unnamed
from shared.lm.blocks import RMSNorm

__all__ = ["LAYOUTS", "Facts", "Layer", "LayerState", "Layout"]

Layout = Literal["mac", "mag", "mal", "lmm", "attention"]
"""`attention` is MAC without a memory: the twin that shows what the memory is worth."""

LayerState = dict[str, Tensor]
Stepped = tuple[Tensor, LayerState, Tensor]
"""x behind the layer, the new state, and what the memory did with each token [B,t,3]: error, rate, share forgotten."""

_MAX_RATE, _CLAMP, _EPS = 0.1, 1.0, 1e-6


@dataclass(frozen=True, slots=True)
class Facts:
    """Sizes of a layer; each head has a memory of its own, of this depth and refresh."""

    width: int
    heads: int
    segment: int
    window: int
    persistent: int
    depth: int
    refresh: int


class Attention(nn.Module):
    """Attention over P learned persistent tokens, which all see, and whatever keys are handed in."""

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self.heads, D = facts.heads, facts.width
        self.to_qkv = nn.Linear(D, 3 * D, bias=False)
        self.to_out = nn.Linear(D, D, bias=False)
        self.persistent = nn.Parameter(torch.randn(2, self.heads, facts.persistent, D // self.heads) * 0.02)

    def project(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v [B,H,t,d] of z [B,t,D], not rotated."""
        q, k, v = self.to_qkv(z).view(*z.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return q, k, v

    def mix(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
        """Attend [B,t,D]; q and k are rotated, `seen` [t,s] says which keys."""
        first_k, first_v = (part.expand(q.shape[0], -1, -1, -1) for part in self.persistent)
        seen = torch.cat((seen.new_ones(seen.shape[0], first_k.shape[2]), seen), 1)
        keys, values = torch.cat((first_k, k), 2), torch.cat((first_v, v), 2)
        mixed = functional.scaled_dot_product_attention(q, keys, values, attn_mask=seen)
        out: Tensor = self.to_out(mixed.transpose(1, 2).flatten(2))
        return out


class _Feed(nn.Module):
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

    def __init__(self, facts: Facts) -> None:
        super().__init__(
            "paper",
            facts.width,
            facts.heads,
            depth=facts.depth,
            refresh=facts.refresh,
            max_rate=_MAX_RATE,
            clamp=_CLAMP,
        )

    def write(self, x: Tensor, state: LayerState, index: int) -> Stepped:
        """Store x [B,t,D] token by token, and what the memory says to each."""
        parts = ("rest", "weights.", "momentum.", "base.", "tails.")
        own = unnamed({key: t for key, t in state.items() if key.startswith(parts)}, index)
        said, after, trace = self.traced(x, own)
        return said, named(after), torch.stack((trace.loss, trace.rate, trace.forgotten), -1).mean(1)


class Layer(nn.Module):
    """A layer of any layout: a norm, something that mixes tokens, and a SwiGLU."""

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self.facts = facts
        self.norm = RMSNorm(facts.width, _EPS)
        self.feed = _Feed(facts.width)

    def forward(self, x: Tensor, state: LayerState, index: int) -> Stepped:
        """Read x [B,t,D] behind `index` tokens; the given state is left as it is."""
        added, after, surprise = self.added(self.norm(x), state, index)
        x = x + added
        return x + self.feed(x), after, surprise

    @abstractmethod
    def added(self, z: Tensor, state: LayerState, index: int) -> Stepped:
        """What mixing adds to x, from z = norm(x)."""

    @abstractmethod
    def start(self, batch: int) -> LayerState:
        """The state before the first token."""

    def _no_keys(self, batch: int, room: int) -> Tensor:
        """Room for keys and values [2,B,H,room,d]."""
        heads = self.facts.heads
        return self.norm.weight.new_zeros(2, batch, heads, room, self.facts.width // heads)


class LMM(Layer):
    """The memory alone: x += memory(z)."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.memory = _Memory(facts)

    def added(self, z: Tensor, state: LayerState, index: int) -> Stepped:
        """What the memory says."""
        return self.memory.write(z, state, index)

    def start(self, batch: int) -> LayerState:
        """The memory's."""
        return named(self.memory.start(batch))


class _Windowed(Layer):
    """A memory and a sliding window: each token sees itself and the W - 1 before it."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.memory, self.attention = _Memory(facts), Attention(facts)
        self.norm_1 = RMSNorm(facts.width, _EPS)

    def start(self, batch: int) -> LayerState:
        """The memory's, and the keys of the window."""
        return {**named(self.memory.start(batch)), "keys": self._no_keys(batch, self.facts.window - 1)}

    def window(self, z: Tensor, state: LayerState, index: int) -> tuple[Tensor, LayerState]:
        """Attention of z [B,t,D] over the window, and the keys to keep: the last W - 1, at the end of their room."""
        room, t = self.facts.window - 1, z.shape[1]
        held = min(index, room)
        q, k, v = self.attention.project(z)
        kept = torch.cat((state["keys"][..., room - held :, :], torch.stack((k, v))), 3)
        at = torch.arange(index - held, index + t, device=z.device)
        ago = at[held:, None] - at
        mixed = self.attention.mix(
            turned_halves(q, at[held:]), turned_halves(kept[0], at), kept[1], (ago >= 0) & (ago <= room)
        )
        last = kept[..., max(held + t - room, 0) :, :]
        return mixed, {"keys": functional.pad(last, (0, 0, room - last.shape[3], 0))}


class MAG(_Windowed):
    """The memory as a gate: x += norm(window) · sigmoid(norm(memory))."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.norm_2 = RMSNorm(facts.width, _EPS)

    def added(self, z: Tensor, state: LayerState, index: int) -> Stepped:
        """Window and memory read the same."""
        mixed, keys = self.window(z, state, index)
        said, after, surprise = self.memory.write(z, state, index)
        return self.norm_1(mixed) * torch.sigmoid(self.norm_2(said)), {**after, **keys}, surprise


class MAL(_Windowed):
    """The memory as a layer: x += window(norm(memory))."""

    def added(self, z: Tensor, state: LayerState, index: int) -> Stepped:
        """The window reads what the memory says."""
        said, after, surprise = self.memory.write(z, state, index)
        mixed, keys = self.window(self.norm_1(said), state, index)
        return mixed, {**after, **keys}, surprise


class Segments(Layer):
    """Attention inside segments of C tokens, and nothing from one to the next."""

    sides = 1
    """Kinds of keys that are kept."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.attention = Attention(facts)

    def start(self, batch: int) -> LayerState:
        """The keys of the current segment."""
        return {"keys": self._no_keys(batch, self.sides * self.facts.segment)}

    def added(self, z: Tensor, state: LayerState, index: int) -> Stepped:
        """Segment by segment."""
        said, surprises = [], []
        for part in _cut(z, index, self.facts.segment):
            out, state, surprise = self.segment(part, state, index)
            said.append(out)
            surprises.append(surprise)
            index += part.shape[1]
        return torch.cat(said, 1), state, torch.cat(surprises, 1)

    def segment(self, z: Tensor, state: LayerState, index: int) -> Stepped:
        """Tokens z [B,t,D] of one segment, or of a part of it."""
        mixed, keys = self.attend(z, [], state, index)
        return mixed, {"keys": keys}, z.new_zeros(*z.shape[:2], 3)

    def attend(self, z: Tensor, recalled: list[Tensor], state: LayerState, index: int) -> tuple[Tensor, Tensor]:
        """Attention of z over its segment, and over what was `recalled` [B,t,D] for the segment's tokens.

        Returns:
            The mix, and the keys to keep [2,B,H,C,d] per kind.
        """
        C, t = self.facts.segment, z.shape[1]
        held = index % C
        at = torch.arange(held + t, device=z.device)
        q, k, v = self.attention.project(z)
        old = torch.split(state["keys"], C, 3)
        new = [*(torch.stack(self.attention.project(part)[1:]) for part in recalled), torch.stack((k, v))]
        kinds = [torch.cat((was[..., :held, :], now), 3) for was, now in zip(old, new, strict=True)]
        keys, values = (
            torch.cat([turned_halves(kind[0], at) for kind in kinds], 2),
            torch.cat([kind[1] for kind in kinds], 2),
        )
        seen = (at[held:, None] >= at).repeat(1, len(kinds))
        mixed = self.attention.mix(turned_halves(q, at[held:]), keys, values, seen)
        return mixed, torch.cat([functional.pad(kind, (0, 0, 0, C - held - t)) for kind in kinds], 3)


class MAC(Segments):
    """The memory as context: a segment attends to what the memory knew when it began, and to itself; x += y · r.

    What the memory knew is asked with each token's own query; y is the attention's answer, which the memory then
    stores, and r what it says to it.
    """

    sides = 2

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.memory = _Memory(facts)

    def start(self, batch: int) -> LayerState:
        """The memory's, its weights at the start of the segment, and the segment's keys."""
        own = named(self.memory.start(batch))
        return {**super().start(batch), **own, **_began(own)}

    def segment(self, z: Tensor, state: LayerState, index: int) -> Stepped:
        """Recall, attend, store."""
        fresh = index % self.facts.segment == 0
        began = _began(state) if fresh else {key: t for key, t in state.items() if key.startswith("began.")}
        mixed, keys = self.attend(z, [self.memory.recall(z, list(began.values()))], state, index)
        said, after, surprise = self.memory.write(mixed, state, index)
        return mixed * said, {"keys": keys, **after, **began}, surprise


LAYOUTS: Mapping[Layout, type[Layer]] = {"mac": MAC, "mag": MAG, "mal": MAL, "lmm": LMM, "attention": Segments}


def _began(state: LayerState) -> LayerState:
    """The memory's weights now, under the names that they have as those of the segment's start."""
    return {key.replace("weights", "began"): t for key, t in state.items() if key.startswith("weights.")}


def _cut(x: Tensor, index: int, size: int) -> Iterator[Tensor]:
    """Cut x [B,t,D] where segments of the stream end."""
    at = 0
    while at < x.shape[1]:
        end = at + size - (index + at) % size
        yield x[:, at:end]
        at = end
