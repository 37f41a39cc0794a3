"""Sequences driven by hand: read a prompt, feed tokens, look at what is held."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakSet

import torch
from torch import Tensor

from fovea.errors import InvalidOption
from services.llm_longctx.engine.attention.method_policy import Policy
from services.llm_longctx.engine.kv_manager import PagedState
from services.llm_longctx.engine.model_runner import ModelRunner
from services.llm_longctx.kv_cache import Entries

SPARE = 128
"""Entries beyond the prompt for which addresses are reserved where nobody says how long the answer may be."""


class OpenSequence:
    """A sequence that holds pages until it is closed.

    Attributes:
        runner: Runs the decoder.
        state: Its state.
    """

    def __init__(self, runner: ModelRunner, state: PagedState, among: WeakSet[OpenSequence] | None = None) -> None:
        """Take a state; `among` are the sequences of one engine, which this one and its forks join."""
        self.runner, self.state = runner, state
        self._among: WeakSet[OpenSequence] = WeakSet() if among is None else among
        self._among.add(self)

    @property
    def policy(self) -> Policy:
        """The method that serves it."""
        return self.state.policy

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
        method = self.policy.method
        if sum(lengths) != len(ids) or any(n < 0 for n in lengths):
            raise InvalidOption(f"Chunks of {lengths} tokens don't make a prompt of {len(ids)}.", field="chunks")
        if len(lengths) > 1 and not method.supports.chunked_prefill:
            raise InvalidOption(f"{method.name} reads a prompt in one chunk.", field="chunks")
        self.state.reserve(self.state.cache.length + len(ids), SPARE)
        model = self.runner.model
        parts = [model.output_matrix.new_zeros(0, model.config.vocab)]
        while lengths:
            size = lengths.pop(0)
            chunk, ids = ids[:size], ids[size:]
            if chunk:
                last = not ids
                parts.append(self.runner.prefill(self.state, chunk, last=last, keep=None, boundaries=boundaries))
        return torch.cat(parts)

    def step(self, token: int) -> Tensor:
        """Feed one token: logits of the next [V]."""
        return self.runner.decode([self.state], [int(token)])[0]

    def entries(self, layer: int, kv_head: int) -> Entries:
        """Entries of a head: k, v [n,d], positions [n] (-1 = virtual), log_weight [n] or None; no compact copies."""
        return self.state.cache.entries(layer, kv_head)

    def kv_bytes(self) -> int:
        """Bytes of the pages held, shared ones included."""
        return self.state.cache.nbytes

    def fork(self) -> OpenSequence:
        """A twin that goes its own way and shares whole pages.

        Raises PoolExhausted: there is no room for what is copied.
        """
        return OpenSequence(self.runner, self.state.fork(), self._among)

    def close(self) -> None:
        """Give back all pages; once is enough."""
        self.state.close()
