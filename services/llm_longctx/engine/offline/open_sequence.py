"""Sequences driven by hand: read a prompt, feed tokens, look at what is held."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from services.llm_longctx.engine.attention.method_policy import Policy
from services.llm_longctx.engine.kv_manager import PagedState
from services.llm_longctx.engine.model_runner import ModelRunner
from services.llm_longctx.engine.prefix_cache import PrefixCache
from services.llm_longctx.engine.sequence import GenerationRequest
from services.llm_longctx.kv_cache import Entries
from shared.errors import InvalidOption

SPARE = 128
"""Entries beyond the prompt for which addresses are reserved where nobody says how long the answer may be."""


class OpenSequence:
    """A sequence that holds pages until it is closed.

    Attributes:
        runner: Runs the decoder.
        state: What it holds.
    """

    def __init__(self, runner: ModelRunner, state: PagedState) -> None:
        self.runner = runner
        self.state = state

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
            detail = f"Chunks of {lengths} tokens don't make a prompt of {len(ids)}."
            raise InvalidOption(detail, field="chunks")
        if len(lengths) > 1 and not method.supports.chunked_prefill:
            detail = f"{method.name} reads a prompt in one chunk."
            raise InvalidOption(detail, field="chunks")
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

    def read(
        self, ids: Sequence[int], new: int = SPARE, prefixes: PrefixCache | None = None, *, shares: bool = False
    ) -> Generator[None, None, Tensor]:
        """Read a prompt in chunks as the scheduler does, one for each piece of work: the logits behind it [1,V].

        Args:
            ids: The prompt.
            new: Tokens of the answer for which addresses are reserved.
            prefixes: Its longest known prefix is not read again; others give way where memory runs out.
            shares: Whether others may begin with what was read; nothing is read where no page would be new [0,V].

        Raises:
            PoolExhausted: There is no room.
        """
        request = GenerationRequest(ids, max_tokens=1)
        at = 0 if prefixes is None else prefixes.attach(self.state, request)
        self.state.reserve(len(ids), new)
        logits = self.runner.model.output_matrix.new_zeros(0, self.runner.model.config.vocab)
        while at < len(ids) - shares * self.runner.pool.page:
            size = self.policy.next_chunk(at, len(ids))
            if prefixes is not None:
                prefixes.make_room(self.state.cache.pages_needed(size))
            is_last = at + size == len(ids)
            logits = self.runner.prefill(self.state, ids[at : at + size], last=is_last, keep=int(is_last))
            at += size
            yield
            if shares and prefixes is not None:
                prefixes.add(self.state, request)
        return logits

    def step(self, token: int) -> Tensor:
        """Feed one token: logits of the next [V]."""
        return self.runner.decode([self.state], [int(token)])[0]

    def entries(self, layer: int, kv_head: int) -> Entries:
        """What a head holds: k, v [n,d], positions [n] (-1 = virtual), log_weight [n] or None; no compact copies."""
        return self.state.cache.entries(layer, kv_head)

    def kv_bytes(self) -> int:
        """Bytes of the pages held, shared ones included."""
        return self.state.cache.nbytes

    def fork(self) -> OpenSequence:
        """A twin that goes its own way and shares whole pages.

        Raises:
            PoolExhausted: There is no room for what is copied.
        """
        return OpenSequence(self.runner, self.runner.fork(self.state))

    def close(self) -> None:
        """Give back all pages; once is enough."""
        self.state.close()
