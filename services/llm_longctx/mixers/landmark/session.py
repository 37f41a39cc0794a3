"""A landmark model that reads a stream: full blocks go to a store, the best k come back for each query (section 3.2).

Positions are *stingy*: whatever the length of the stream, the model sees k + 1 block slots before the chunk in hand.
Knows networks by four verbs (embed, blocks, turn, finish) and stores by two; knows no server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor

from services.llm_longctx.mixers.landmark.attention import grouped_softmax
from services.llm_longctx.mixers.landmark.block_store import BlockStore, home

__all__ = ["Gate", "LandmarkNetwork", "LandmarkSession", "Positions", "Selection", "Step"]

Selection = Literal["per_token_and_head", "max_over_heads", "max_over_tokens"]
Positions = Literal["exact", "released"]
Gate = Literal["landmark", "mean"]
Turn = Callable[[Tensor, Tensor], Tensor]
"""Rotate x [...,d] to positions [...]."""

NEWER = 1e-5
"""What a block's rank gains by its age: exact ties (all keys of layer 0 are the same) go to the newest."""


class LandmarkNetwork(Protocol):
    """What a session needs of a network."""

    block: int
    landmark_id: int

    @property
    def layers(self) -> list[Any]:
        """Blocks in order, each with `project`, `output` and `feed`."""
        ...

    def embed(self, ids: Tensor) -> Tensor:
        """Residual stream [B,T,D] of tokens."""
        ...

    def turn(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rotary positions on x [...,d]."""
        ...

    def finish(self, x: Tensor) -> Tensor:
        """Final norm and output matrix."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """What a chunk gave.

    Attributes:
        logits: Of the caller's tokens [B,t,V].
        blocks: Per layer the absolute numbers of the chosen blocks [B,H,t',k'], or None when nothing was stored yet.
            t' counts inserted landmarks too, and is 1 where the tokens of a chunk share one choice.
        kept: Which of the t' positions are the caller's tokens.
    """

    logits: Tensor
    blocks: list[Tensor | None]
    kept: Tensor


class LandmarkSession:
    """One stream (or a batch of streams of equal length) that is read chunk by chunk."""

    def __init__(
        self,
        net: LandmarkNetwork,
        batch: int = 1,
        *,
        blocks: int = 2,
        selection: Selection = "per_token_and_head",
        positions: Positions = "exact",
        insert_landmarks: bool = True,
        capacity: int | None = None,
        offload: bool | str = False,
        gate: Gate = "landmark",
    ) -> None:
        """Start an empty stream.

        Args:
            net: The network.
            batch: Streams B.
            blocks: Retrieved per query, k; more than are stored means all.
            selection: Who shares a choice; `max_over_tokens` moves least when blocks are off the device.
            positions: `exact`, or `released` for the GPT code's own slots (one too far right; only for its goldens).
            insert_landmarks: Whether the session writes a landmark behind every L tokens of the whole stream; if not,
                the caller's tokens hold them.
            capacity: Most blocks kept per layer; the oldest go.
            offload: Where blocks wait: False or `none`, True or `cpu`, `disk`.
            gate: What blocks are chosen by: their landmarks, or the mean of their keys (a control without training).

        Raises:
            ValueError: An option is out of range.
        """
        if blocks < 1 or (capacity is not None and capacity < 1):
            message = f"blocks and capacity must be at least 1, not {blocks} and {capacity}"
            raise ValueError(message)
        self.net, self.batch, self.read = net, batch, 0
        self._insert = insert_landmarks
        self._layers = [
            _Layer(net.turn, net.block, blocks, selection, positions, gate, BlockStore(home(offload), capacity))
            for _ in net.layers
        ]

    @torch.no_grad()
    def feed(self, tokens: Tensor) -> Step:
        """Read tokens [B,t].

        Raises:
            ValueError: With `insert_landmarks=False`, a landmark that is not behind exactly L tokens.
        """
        ids, kept = self._with_landmarks(tokens) if self._insert else (tokens, torch.ones_like(tokens[0]).bool())
        landmark = self._landmarks(ids)
        x, chosen = self.net.embed(ids), []
        for block, layer in zip(self.net.layers, self._layers, strict=True):
            q, k, v = (part.transpose(1, 2) for part in block.project(x))
            mixed, blocks = layer.attend(q, k, v, landmark)
            chosen.append(blocks)
            x = x + block.output(mixed.transpose(1, 2))
            x = x + block.feed(x)
        self.read += ids.shape[1]
        return Step(self.net.finish(x)[:, kept], chosen, kept)

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is remembered."""
        return sum(layer.nbytes for layer in self._layers)

    @property
    def moved(self) -> int:
        """Bytes of blocks that were fetched from where they wait."""
        return sum(layer.store.moved for layer in self._layers)

    @property
    def stored(self) -> int:
        """Blocks held per layer."""
        return len(self._layers[0].store)

    @property
    def first(self) -> int:
        """Number of the oldest block that is still held."""
        return self._layers[0].store.first

    def fork(self, blocks: int | None = None, selection: Selection | None = None) -> Self:
        """A session that goes its own way from here, perhaps choosing differently: one document, many questions."""
        twin = object.__new__(type(self))
        twin.net, twin.batch, twin.read, twin._insert = self.net, self.batch, self.read, self._insert
        twin._layers = [layer.fork() for layer in self._layers]
        for layer in twin._layers:
            layer.wanted, layer.selection = blocks or layer.wanted, selection or layer.selection
        return twin

    @property
    def dtype(self) -> torch.dtype:
        """Of keys and values."""
        return self._nothing().dtype

    def state(self) -> dict[str, Tensor]:
        """What is remembered by name: per layer `blocks` [n,B,H,2,L+1,d], keys then values, and `tail` [B,H,2,r,d]."""
        shapes, nothing, found = self.shapes(self.read - self.read // (self.net.block + 1)), self._nothing(), {}
        for i, layer in enumerate(self._layers):
            blocks, tail = layer.store.pile(), layer.tail or (nothing, nothing)
            name = f"layers.{i}.blocks"
            found[name] = nothing.new_zeros(shapes[name]).cpu() if blocks is None else blocks
            found[f"layers.{i}.tail"] = torch.stack(tail, 2).cpu()
        return found

    def shapes(self, tokens: int) -> dict[str, tuple[int, ...]]:
        """Shapes of `state` behind so many of the caller's tokens, landmarks inserted."""
        size, found = self.net.block + 1, dict[str, tuple[int, ...]]()
        B, H, _, d = self._nothing().shape
        for i, layer in enumerate(self._layers):
            full, rest = divmod(tokens, self.net.block)
            held = min(full, layer.store.capacity or full)
            found |= {f"layers.{i}.blocks": (held, B, H, 2, size, d), f"layers.{i}.tail": (B, H, 2, rest, d)}
        return found

    def restore(self, state: Mapping[str, Tensor], tokens: int) -> None:
        """Fill an empty session with the `state` of one that has read so many tokens, landmarks inserted."""
        full, device = tokens // self.net.block, self._nothing().device
        self.read = tokens + full
        for i, layer in enumerate(self._layers):
            blocks, tail = state[f"layers.{i}.blocks"].to(device), state[f"layers.{i}.tail"].to(device)
            layer.store.fill(blocks, full - len(blocks))
            layer.tail = (tail[:, :, 0].clone(), tail[:, :, 1].clone())

    def _nothing(self) -> Tensor:
        """No keys [B,H,0,d], otherwise like all others."""
        nothing = torch.zeros(self.batch, 0, dtype=torch.long)
        keys: Tensor = self.net.layers[0].project(self.net.embed(nothing))[1].transpose(1, 2)
        return keys

    def _with_landmarks(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens with a landmark behind every L of the stream, and which of them are the caller's."""
        size, ids, kept = self.net.block + 1, [], []
        for token in tokens.unbind(1):
            ids.append(token)
            kept.append(True)
            if (self.read + len(ids) + 1) % size == 0:
                ids.append(torch.full_like(token, self.net.landmark_id))
                kept.append(False)
        if not ids:
            return tokens, torch.zeros(0, dtype=torch.bool)
        return torch.stack(ids, 1), torch.tensor(kept)

    def _landmarks(self, ids: Tensor) -> Tensor:
        """Which tokens close a block [t]; blocks are of one size, for all rows alike."""
        size = self.net.block + 1
        expected = (torch.arange(self.read, self.read + ids.shape[1], device=ids.device) + 1) % size == 0
        if not torch.equal(ids == self.net.landmark_id, expected.expand_as(ids)):
            message = f"landmarks must follow exactly every {self.net.block} tokens of the stream"
            raise ValueError(message)
        return expected


class _Layer:
    """What one layer remembers: a store of full blocks and the tail of an open one, keys before rotation."""

    def __init__(
        self,
        turn: Turn,
        block: int,
        wanted: int,
        selection: Selection,
        positions: Positions,
        gate: Gate,
        store: BlockStore,
    ) -> None:
        self.turn, self.size, self.wanted, self.store = turn, block + 1, wanted, store
        self.selection, self.released, self.gate = selection, positions == "released", gate
        self.tail: tuple[Tensor, Tensor] | None = None

    @property
    def nbytes(self) -> int:
        return self.store.nbytes + sum(tensor.nbytes for tensor in self.tail or ())

    def fork(self) -> _Layer:
        twin = object.__new__(type(self))
        vars(twin).update(vars(self))
        twin.store = self.store.fork()
        return twin

    def attend(self, q: Tensor, k: Tensor, v: Tensor, landmark: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mixed values [B,H,t,d] of a chunk q, k, v [B,H,t,d], and the blocks that each query chose."""
        open_k, open_v = self.tail or (k[:, :, :0], v[:, :, :0])
        local_k, local_v = torch.cat((open_k, k), 2), torch.cat((open_v, v), 2)
        tail, (t, d) = open_k.shape[2], q.shape[-2:]
        start = min(len(self.store), self.wanted + 1) * self.size + tail
        at = torch.arange(start - tail, start + t, device=q.device)
        q = self.turn(q, at[tail:]) * d**-0.5
        scores = q @ self.turn(local_k, at).mT
        seen = torch.ones(t, tail + t, dtype=torch.bool, device=q.device).tril(tail)
        closing = torch.cat((landmark.new_zeros(tail), landmark))
        block = closing.long().cumsum(0) - closing.long()
        if not len(self.store):
            mixed, chosen = grouped_softmax(scores, block, closing, seen) @ local_v, None
        else:
            mixed, chosen = self._with_blocks(q, scores, seen, closing, block, local_v)
        self._remember(local_k, local_v)
        return mixed, chosen

    def _with_blocks(
        self, q: Tensor, local: Tensor, seen: Tensor, closing: Tensor, block: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same over [chosen blocks | tail | chunk]; the chosen are visible to all."""
        chosen, slots = self._choose(q)
        far_k, far_v = self.store.fetch(chosen)
        at = slots[..., None] * self.size + torch.arange(self.size, device=q.device)
        far_k, far_v = self.turn(far_k, at).flatten(3, 4), far_v.flatten(3, 4)
        k, columns = chosen.shape[-1], far_k.shape[3]
        scores = torch.cat((torch.einsum("bhtd,bhtcd->bhtc", q, far_k), local), -1)
        far = torch.arange(columns, device=q.device)
        weights = grouped_softmax(
            scores,
            torch.cat((far // self.size, k + block)),
            torch.cat((far % self.size == self.size - 1, closing)),
            torch.cat((seen.new_ones(len(seen), columns), seen), 1),
        )
        mixed = torch.einsum("bhtc,bhtcd->bhtd", weights[..., :columns], far_v) + weights[..., columns:] @ values
        return mixed, chosen + self.store.first

    def _choose(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """The k' best blocks of each query, sorted by time [B,H,t|1,k'], and the slot that each is read at.

        The k' most recent blocks keep their places before the chunk; everything older shares slot 0 while it is scored,
        and is read from the leftmost slots.
        """
        n = len(self.store)
        k = min(self.wanted, n)
        shift = int(self.released or n > k)
        age = torch.arange(n, device=q.device)
        slots = torch.where(age >= n - k, age - (n - k) + shift, 0)
        index = self.store.landmarks if self.gate == "landmark" else self.store.means
        keys = self.turn(index, slots * self.size + self.size - 1)
        share = (q @ keys.mT).softmax(-1)
        if self.selection == "max_over_heads":
            share = share.amax(1, keepdim=True).expand_as(share)
        elif self.selection == "max_over_tokens":
            share = share.amax(2, keepdim=True)
        rank = share + NEWER * min(1.0, 1000 / n) * age
        chosen = rank.topk(k, -1).indices.sort(-1).values
        return chosen, torch.arange(k, device=q.device) + shift * (chosen >= n - k)

    def _remember(self, k: Tensor, v: Tensor) -> None:
        full = k.shape[2] // self.size
        cut = full * self.size
        if full:
            blocks = (part[:, :, :cut].reshape(*part.shape[:2], full, self.size, -1) for part in (k, v))
            self.store.append(*blocks)
        self.tail = (k[:, :, cut:].clone(), v[:, :, cut:].clone())
