"""One open sequence: its memory, its policy, and what the method remembers of it. Reads prompts and steps by hand.

Knows the decoder and the seams; knows nothing about other sequences, sampling or scheduling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from services.llm_longctx.engine.decode_attention import decode
from services.llm_longctx.engine.method_policy import Policy
from services.llm_longctx.engine.prefill_attention import ChunkAttention
from services.llm_longctx.kernels import layer_ops
from services.llm_longctx.kv_cache import Entries, PagePool, SequenceCache
from shared.errors import InvalidOption
from shared.lm.decoder import Decoder

__all__ = ["OpenSequence"]

SPARE = 128
"""Entries beyond the prompt for which addresses are reserved where nobody says how long the answer may be."""


class OpenSequence:
    """A sequence that holds pages until it is closed.

    Attributes:
        policy: The method at work.
        memory: Keys and values.
        memos: What the method wants to see again, per layer.
        prompt: Tokens of the prompt.
        room: Tokens that prompt and answer are expected to have together.
        densities: Of block-sparse readings, per layer and chunk.
        full_steps: Steps whose scores the method asked for.
        cached: Tokens that came from the prefix cache.
    """

    def __init__(self, model: Decoder, pool: PagePool, policy: Policy, backend: str) -> None:
        self.policy = policy
        self.memory = SequenceCache(pool, model.config.layers, model.config.kv_heads)
        self.memos: list[object] = [None] * model.config.layers
        self.prompt = 0
        self.room = 0
        self.densities: list[float] = []
        self.full_steps = 0
        self.cached = 0
        self.closed = False
        self._model = model
        self._backend = backend

    def prefill(
        self, ids: Sequence[int], chunks: Sequence[int] | None = None, boundaries: Sequence[int] | None = None
    ) -> Tensor:
        """Read a prompt: logits of every position [N,V].

        Args:
            ids: The prompt.
            chunks: Lengths of the chunks in which it is read; None reads it in one.
            boundaries: Chunk borders for methods that would predict them (DHSA), 0 and N included.

        Raises:
            InvalidOption: The chunks don't add up, or the method can't be read in several.
        """
        ids, lengths = [int(i) for i in ids], [len(ids)] if chunks is None else list(chunks)
        if sum(lengths) != len(ids) or any(n < 0 for n in lengths):
            detail = f"Chunks of {lengths} tokens don't make a prompt of {len(ids)}."
            raise InvalidOption(detail, field="chunks")
        if len(lengths) > 1 and not self.policy.method.supports.chunked_prefill:
            detail = f"{self.policy.method.name} reads a prompt in one chunk."
            raise InvalidOption(detail, field="chunks")
        self.reserve(self.memory.length + len(ids), SPARE)
        self.prompt = self.memory.length + len(ids)
        parts = [self._model.output_matrix.new_zeros(0, self._model.config.vocab)]
        while lengths:
            size = lengths.pop(0)
            chunk, ids = ids[:size], ids[size:]
            if chunk:
                parts.append(self.read(chunk, last=not ids, keep=None, boundaries=boundaries))
        return torch.cat(parts)

    def reserve(self, tokens: int, new: int) -> None:
        """Reserve addresses for a prompt of so many tokens and an answer, so that nothing need move later."""
        self.room = tokens + new
        entries, _ = self.policy.footprint(tokens, new)
        if self.policy.method.cut_at_end:
            entries = entries.clip(min=tokens)  # what is cut at the end is whole until then
        self.memory.reserve((entries - sum(part.n for part in self.memory.parts)).clip(min=1))

    @torch.inference_mode()
    def read(
        self, chunk: Sequence[int], *, last: bool, keep: int | None, boundaries: Sequence[int] | None = None
    ) -> Tensor:
        """Read one chunk: logits of its last `keep` positions, or of all [T,V].

        Args:
            chunk: Tokens, one or more.
            last: Whether the prompt ends with them.
            keep: Positions that get logits.
            boundaries: As in `prefill`.
        """
        device, offset = self._model.output_matrix.device, self.memory.length
        borders = None if boundaries is None else tuple(boundaries)
        seam = ChunkAttention(self, last=last, boundaries=borders, backend=self._backend)
        ops = layer_ops(self._backend, self.memory.pool.keys.dtype, device.type)
        ids = torch.tensor([list(chunk)], device=device)
        logits: Tensor = self._model(ids, attend=seam, offset=offset, keep=keep, ops=ops)
        self.memory.length += len(chunk)
        return logits[0]

    def step(self, token: int) -> Tensor:
        """Feed one token: logits of the next [V]."""
        with torch.inference_mode():
            return decode(self._model, [self], [int(token)], self._backend)[0]

    def entries(self, layer: int, kv_head: int) -> Entries:
        """What a head holds: k, v [n,d], positions [n] (-1 = virtual), log_weight [n] or None; no compact copies."""
        return self.memory.entries(layer, kv_head)

    def kv_bytes(self) -> int:
        """Bytes of the pages held, shared ones included."""
        return self.memory.nbytes

    def fork(self) -> Self:
        """A twin that goes its own way and shares whole pages.

        Raises:
            PoolExhausted: There is no room for what is copied.
        """
        twin = type(self)(self._model, self.memory.pool, self.policy, self._backend)
        twin.resume(self.memory.fork(), self.memos, self.prompt, self.room)
        twin.densities, twin.full_steps, twin.cached = list(self.densities), self.full_steps, self.cached
        return twin

    def resume(self, memory: SequenceCache, memos: Sequence[object], prompt: int, room: int) -> None:
        """Go on from what another one has read."""
        self.memory, self.memos, self.prompt, self.room = memory, list(memos), prompt, room

    def close(self) -> None:
        """Give back all pages; once is enough."""
        self.closed = True
        self.memory.close()
