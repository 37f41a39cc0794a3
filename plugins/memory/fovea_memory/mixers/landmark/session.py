"""Landmark models and their streaming inference: full blocks go to a store, each query fetches its top k (section 3.2).

Positions are *stingy*: whatever the length of the stream, the model sees k + 1 block slots before the current chunk.
The base class says what a network must offer. Knows stores by append and fetch; knows no server.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from fovea_memory.mixers.landmark.attention import grouped_softmax, landmark_softmax, regular_softmax
from fovea_memory.mixers.landmark.block_store import BlockStore, resolve_home
from shared.lm.host_transfer import take_rows

Selection = Literal["per_token_and_head", "max_over_heads", "max_over_tokens"]
Positions = Literal["exact", "released"]
Gate = Literal["landmark", "mean"]

AGE_BONUS = 1e-5
"""Bonus of a block's rank for its age: exact ties (all keys of layer 0 are the same) go to the newest."""


class LandmarkLM(nn.Module):
    """Base of both networks: the uncached forward pass of training, and sessions.

    Attributes:
        block: Ordinary tokens L of a block.
        landmark_id: The token that closes one.
        context: Longest sequence that it was trained on, landmarks included.
        max_blocks: Older blocks that a token may read in the uncached forward pass; None is all. Training sets it.
    """

    optional: tuple[str, ...]
    """Endings of keys that a checkpoint may carry and that hold nothing to load."""

    def __init__(self, block: int, landmark_id: int, context: int) -> None:
        super().__init__()
        self.block, self.landmark_id, self.context = block, landmark_id, context
        self.max_blocks: int | None = None

    layers: Any

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """Residual stream [B,T,D] of tokens."""

    @abstractmethod
    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rotary positions on x [...,d]."""

    @abstractmethod
    def logits(self, x: Tensor) -> Tensor:
        """Final norm and output matrix."""

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [B,T,V] of `ids` [B,T], landmarks among them: the uncached form, as trained."""
        at = torch.arange(ids.shape[1], device=ids.device)
        landmark = ids == self.landmark_id
        x = self.embed(ids)
        for block in self.layers:
            q, k, v = (part.transpose(1, 2) for part in block.project(x))
            mixed = self.attend(self.rotate(q, at), self.rotate(k, at), v, landmark)
            x = x + block.output(mixed.transpose(1, 2))
            x = x + block.feed(x)
        return self.logits(x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, landmark: Tensor) -> Tensor:
        """Attention [B,H,T,d] in the cheapest form that the landmarks [B,T] allow."""
        if not bool(landmark.any()):  # one open block: plain causal attention
            return functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        scores = q @ k.mT * q.shape[-1] ** -0.5
        at = torch.arange(q.shape[2], device=q.device)
        regular = bool((landmark == ((at + 1) % (self.block + 1) == 0)).all())
        weights = (
            regular_softmax(scores, self.block, self.max_blocks) if regular else landmark_softmax(scores, landmark)
        )
        return weights @ v

    def session(self, batch: int = 1, **options: Any) -> LandmarkSession:
        """Start a stream that is read chunk by chunk; options are those of `LandmarkSession`."""
        return LandmarkSession(self, batch, **options)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load official weights; buffers that the network makes itself may be in the file or not."""
        kept = {key: value for key, value in state_dict.items() if not key.endswith(self.optional)}
        return super().load_state_dict(kept, strict=strict, assign=assign)


@dataclass(frozen=True, slots=True)
class LandmarkOutput:
    """Output of one chunk.

    Attributes:
        logits: Of the caller's tokens [B,t,V].
        blocks: Per layer the absolute numbers of the chosen blocks [B,H,t',k'], or None where no block is stored yet.
            t' counts inserted landmarks too, and is 1 where the tokens of a chunk share one choice.
        is_token: Which of the t' positions are the caller's tokens, on the CPU.
    """

    logits: Tensor
    blocks: list[Tensor | None]
    is_token: Tensor


class LandmarkSession:
    """State of one stream (or a batch of streams of equal length) that is read chunk by chunk."""

    def __init__(
        self,
        net: LandmarkLM,
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
            blocks: Blocks that each query retrieves, k; more than are stored means all.
            selection: The queries that share a choice; `max_over_tokens` moves least when blocks are off the device.
            positions: `exact`, or `released` for the GPT code's own slots (one too far right; only for its goldens).
            insert_landmarks: Whether the session writes a landmark behind every L tokens of the whole stream; if not,
                the caller's tokens hold them.
            capacity: Most blocks kept per layer; the oldest go.
            offload: Where blocks wait: False or `none`, True or `cpu`, `disk`.
            gate: The ranking of blocks: by their landmarks, or the mean of their keys (a control without training).

        Raises:
            ValueError: An option is out of range.
        """
        if blocks < 1 or (capacity is not None and capacity < 1):
            raise ValueError(f"blocks and capacity must be at least 1, not {blocks} and {capacity}")
        self.net, self.batch, self.tokens_read = net, batch, 0
        self._inserts_landmarks = insert_landmarks
        self.layers = [
            _LayerCache(net, blocks, selection, positions, gate, BlockStore(resolve_home(offload), capacity))
            for _ in net.layers
        ]

    @torch.no_grad()
    def feed(self, tokens: Tensor) -> LandmarkOutput:
        """Read tokens [B,t].

        Raises:
            ValueError: With `insert_landmarks=False`, a landmark that is not behind exactly L tokens.
        """
        if self._inserts_landmarks:
            ids, is_token = self._insert_landmarks(tokens)
        else:
            ids, is_token = tokens, torch.ones(tokens.shape[1], dtype=torch.bool, device="cpu")
        landmark = self._landmark_mask(ids)
        x, chosen = self.net.embed(ids), []
        for block, layer in zip(self.net.layers, self.layers, strict=True):
            q, k, v = (part.transpose(1, 2) for part in block.project(x))
            out, blocks = layer.attend(q, k, v, landmark)
            chosen.append(blocks)
            x = x + block.output(out.transpose(1, 2))
            x = x + block.feed(x)
        self.tokens_read += ids.shape[1]
        own = take_rows(self.net.logits(x).transpose(0, 1), is_token.nonzero()[:, 0].tolist()).transpose(0, 1)
        return LandmarkOutput(own, chosen, is_token)

    @property
    def nbytes(self) -> int:
        """Bytes of all cached tensors."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def moved_bytes(self) -> int:
        """Bytes of blocks that were fetched from outside the device."""
        return sum(layer.store.moved_bytes for layer in self.layers)

    @property
    def num_blocks(self) -> int:
        """Blocks held per layer."""
        return len(self.layers[0].store)

    @property
    def first_block(self) -> int:
        """Number of the oldest block that is still held."""
        return self.layers[0].store.first_block

    def fork(self, blocks: int | None = None, selection: Selection | None = None) -> Self:
        """An independent copy that shares stored blocks, with other `blocks` or `selection` where given."""
        twin = copy.copy(self)
        twin.layers = [layer.fork(blocks, selection) for layer in self.layers]
        return twin

    @property
    def dtype(self) -> torch.dtype:
        """Of keys and values."""
        return self._empty_keys().dtype

    def state(self) -> dict[str, Tensor]:
        """Cached tensors by name: per layer `blocks` [n,B,H,2,L+1,d], keys then values, and `tail` [B,H,2,r,d]."""
        landmarks = self.tokens_read // (self.net.block + 1)
        shapes, empty, tensors = self.state_shapes(self.tokens_read - landmarks), self._empty_keys(), {}
        for i, layer in enumerate(self.layers):
            blocks, tail = layer.store.to_tensor(), layer.tail or (empty, empty)
            name = f"layers.{i}.blocks"
            tensors[name] = empty.new_zeros(shapes[name]).cpu() if blocks is None else blocks
            tensors[f"layers.{i}.tail"] = torch.stack(tail, 2).cpu()
        return tensors

    def state_shapes(self, tokens: int) -> dict[str, tuple[int, ...]]:
        """Shapes of `state` behind so many of the caller's tokens, landmarks inserted."""
        size, tensors = self.net.block + 1, dict[str, tuple[int, ...]]()
        B, H, _, d = self._empty_keys().shape
        for i, layer in enumerate(self.layers):
            full, rest = divmod(tokens, self.net.block)
            held = min(full, layer.store.capacity or full)
            tensors |= {f"layers.{i}.blocks": (held, B, H, 2, size, d), f"layers.{i}.tail": (B, H, 2, rest, d)}
        return tensors

    def restore(self, state: Mapping[str, Tensor], tokens: int) -> None:
        """Fill an empty session with the `state` of one that has read so many tokens, landmarks inserted."""
        full, device = tokens // self.net.block, self._empty_keys().device
        self.tokens_read = tokens + full
        for i, layer in enumerate(self.layers):
            blocks, tail = state[f"layers.{i}.blocks"].to(device), state[f"layers.{i}.tail"].to(device)
            layer.store.load(blocks, full - len(blocks))
            layer.tail = (tail[:, :, 0].clone(), tail[:, :, 1].clone())

    def _empty_keys(self) -> Tensor:
        """No keys [B,H,0,d], otherwise like all others."""
        empty = torch.zeros(self.batch, 0, dtype=torch.long, device=next(self.net.parameters()).device)
        keys: Tensor = self.net.layers[0].project(self.net.embed(empty))[1].transpose(1, 2)
        return keys

    def _insert_landmarks(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens with a landmark behind every L of the stream, and which of them are the caller's."""
        size, ids, is_token = self.net.block + 1, [], []
        for token in tokens.unbind(1):
            ids.append(token)
            is_token.append(True)
            if (self.tokens_read + len(ids) + 1) % size == 0:
                ids.append(torch.full_like(token, self.net.landmark_id))
                is_token.append(False)
        if not ids:
            return tokens, torch.zeros(0, dtype=torch.bool, device="cpu")
        return torch.stack(ids, 1), torch.tensor(is_token, device="cpu")

    def _landmark_mask(self, ids: Tensor) -> Tensor:
        """Which tokens close a block [t]; blocks are of one size, for all rows alike."""
        size = self.net.block + 1
        expected = (torch.arange(self.tokens_read, self.tokens_read + ids.shape[1], device=ids.device) + 1) % size == 0
        if not torch.equal(ids == self.net.landmark_id, expected.expand_as(ids)):
            raise ValueError(f"landmarks must follow exactly every {self.net.block} tokens of the stream")
        return expected


@dataclass(eq=False, slots=True)
class _LayerCache:
    """Cache of one layer: a store of full blocks and the tail of an open one, keys before rotation."""

    net: LandmarkLM
    top_k: int
    selection: Selection
    positions: Positions
    gate: Gate
    store: BlockStore
    tail: tuple[Tensor, Tensor] | None = None

    @property
    def slot_size(self) -> int:
        return self.net.block + 1

    @property
    def nbytes(self) -> int:
        return self.store.nbytes + sum(tensor.nbytes for tensor in self.tail or ())

    def fork(self, blocks: int | None, selection: Selection | None) -> _LayerCache:
        chosen, by = blocks or self.top_k, selection or self.selection
        return replace(self, store=self.store.fork(), top_k=chosen, selection=by)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, landmark: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mixed values [B,H,t,d] of a chunk q, k, v [B,H,t,d], and the blocks that each query chose."""
        open_k, open_v = self.tail or (k[:, :, :0], v[:, :, :0])
        local_k, local_v = torch.cat((open_k, k), 2), torch.cat((open_v, v), 2)
        tail, (t, d) = open_k.shape[2], q.shape[-2:]
        start = min(len(self.store), self.top_k + 1) * self.slot_size + tail
        at = torch.arange(start - tail, start + t, device=q.device)
        q = self.net.rotate(q, at[tail:]) * d**-0.5
        scores = q @ self.net.rotate(local_k, at).mT
        visible = torch.ones(t, tail + t, dtype=torch.bool, device=q.device).tril(tail)
        closing = torch.cat((landmark.new_zeros(tail), landmark))
        block = closing.long().cumsum(0) - closing.long()
        if not len(self.store):
            out, chosen = grouped_softmax(scores, block, closing, visible) @ local_v, None
        else:
            out, chosen = self._attend_with_blocks(q, scores, visible, closing, block, local_v)
        self._store_blocks(local_k, local_v)
        return out, chosen

    def _attend_with_blocks(
        self, q: Tensor, local: Tensor, visible: Tensor, closing: Tensor, block: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same over [chosen blocks | tail | chunk]; the chosen are visible to all."""
        chosen, slots = self._select_blocks(q)
        far_k, far_v = self.store.fetch(chosen)
        at = slots[..., None] * self.slot_size + torch.arange(self.slot_size, device=q.device)
        far_k, far_v = self.net.rotate(far_k, at).flatten(3, 4), far_v.flatten(3, 4)
        k, columns = chosen.shape[-1], far_k.shape[3]
        scores = torch.cat((torch.einsum("bhtd,bhtcd->bhtc", q, far_k), local), -1)
        far = torch.arange(columns, device=q.device)
        weights = grouped_softmax(
            scores,
            torch.cat((far // self.slot_size, k + block)),
            torch.cat((far % self.slot_size == self.slot_size - 1, closing)),
            torch.cat((visible.new_ones(len(visible), columns), visible), 1),
        )
        out = torch.einsum("bhtc,bhtcd->bhtd", weights[..., :columns], far_v) + weights[..., columns:] @ values
        return out, chosen + self.store.first_block

    def _select_blocks(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """The k' top blocks of each query, sorted by time [B,H,t|1,k'], and the slot that each is read at.

        The k' most recent blocks keep their places before the chunk; everything older shares slot 0 while it is scored,
        and is read from the leftmost slots.
        """
        n = len(self.store)
        k = min(self.top_k, n)
        shift = int(self.positions == "released" or n > k)
        age = torch.arange(n, device=q.device)
        slots = torch.where(age >= n - k, age - (n - k) + shift, 0)
        index = self.store.landmarks if self.gate == "landmark" else self.store.means
        keys = self.net.rotate(index, slots * self.slot_size + self.slot_size - 1)
        share = (q @ keys.mT).softmax(-1)
        if self.selection == "max_over_heads":
            share = share.amax(1, keepdim=True).expand_as(share)
        elif self.selection == "max_over_tokens":
            share = share.amax(2, keepdim=True)
        rank = share + AGE_BONUS * min(1.0, 1000 / n) * age
        chosen = rank.topk(k, -1).indices.sort(-1).values
        return chosen, torch.arange(k, device=q.device) + shift * (chosen >= n - k)

    def _store_blocks(self, k: Tensor, v: Tensor) -> None:
        full = k.shape[2] // self.slot_size
        cut = full * self.slot_size
        if full:
            blocks = (part[:, :, :cut].reshape(*part.shape[:2], full, self.slot_size, -1) for part in (k, v))
            self.store.append(*blocks)
        self.tail = (k[:, :, cut:].clone(), v[:, :, cut:].clone())
