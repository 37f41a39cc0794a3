"""The voice of models whose sessions are ordinary caches: causal routing, and hybrids of deconstructed mixers.

Knows how to feed such a session and what it remembers; knows nothing about how it mixes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from services.llm_longctx.engine import GenerationRequest
from services.llm_longctx.serving.adapters.landmark_options import refuse_knobs
from services.llm_longctx.serving.request_state import Brought
from services.llm_longctx.serving.session_model import MixerVoice, finite
from shared.api.text import GenerationOptions

__all__ = ["PlainStream", "SessionAdapter"]

CHUNK = 64
"""Tokens read at a time; outputs do not depend on it."""


class PlainStream:
    """A session with caches as the scheduler runs it; see `RequestSession`."""

    def __init__(self, session: Any, dense_token_bytes: int) -> None:
        self.session, self.num_read, self._dense = session, 0, dense_token_bytes

    @property
    def max_chunk(self) -> int:
        """Any cut is as good as another."""
        return CHUNK

    @property
    def nbytes(self) -> int:
        """Bytes that all layers remember."""
        held = self.session.nbytes
        return sum(held) if isinstance(held, list) else int(held)

    @property
    def dense_nbytes(self) -> int:
        """Keys and values of every token in every layer."""
        return self.num_read * self._dense

    @property
    def density(self) -> float:
        """All of it."""
        return 1.0

    def feed(self, tokens: Sequence[int]) -> Tensor:
        """Read tokens; their logits [t,V]."""
        logits: Tensor = self.session.feed(torch.tensor([list(tokens)]))[0]
        self.num_read += len(tokens)
        return finite(logits)

    def fork(self) -> Self:
        """A stream that goes its own way from here."""
        twin = type(self)(self.session.fork(), self._dense)
        twin.num_read = self.num_read
        return twin

    def close(self) -> None:
        """Nothing is held beyond memory."""


@dataclass(frozen=True)
class _Source:
    """Opens the session of one request; see `SessionSource`."""

    adapter: SessionAdapter

    @property
    def max_bytes(self) -> int:
        """Keys and values of a whole context, with as much again for what else a mixer keeps."""
        return 2 * self.adapter.context * self.adapter.dense_token_bytes

    def open(self) -> PlainStream:
        """A session that has read nothing."""
        return PlainStream(self.adapter.net.session(1), self.adapter.dense_token_bytes)

    def on_finish(self, session: PlainStream, _last: Sequence[int]) -> None:
        """Show the session to whoever counts what it does."""
        self.adapter.seen(session.session)


@dataclass(frozen=True)
class SessionAdapter(MixerVoice):
    """A network with caches, ready to speak.

    Attributes:
        dense_token_bytes: What dense attention of its sizes would remember of a token.
        seen: Is shown each session at the end of its answer.
    """

    dense_token_bytes: int = 0
    seen: Callable[[Any], None] = lambda _session: None

    def prepare(
        self,
        ids: Sequence[int],
        wanted: int | None,
        options: GenerationOptions,
        field: str,
        text: str | None,
        brought: Brought | None,
    ) -> GenerationRequest:
        """A request in a session of its own.

        Raises:
            InvalidOption: A knob; there is none.
        """
        refuse_knobs(options.longctx, self.name)
        return self.request_of(ids, self.most(ids, wanted), options, _Source(self))
