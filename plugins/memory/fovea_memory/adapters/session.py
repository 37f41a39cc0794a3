"""Session adapters: models whose requests have a session each, in place of pages of a shared KV cache.

`SessionAdapter` is what all of them share; `StatelessSessionAdapter` serves models that keep nothing between requests:
causal routing, and hybrids of deconstructed mixers. Knows sessions by `feed` and `nbytes`; knows no mixer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fovea.api.longctx import LongctxUsage
from fovea.api.text import GenerationOptions
from fovea.errors import Conflict
from fovea_memory.adapters.landmark_options import refuse_knobs
from fovea_memory.request_session import RequestSession, SessionSource
from fovea_memory.toy_tokenizers import OffsetTokenizer
from services.llm_longctx.engine import GenerationRequest, Scheduler
from services.llm_longctx.serving.adapters.base import RequestState, TextModelAdapter, priority_of
from shared.lm.host_transfer import to_device


class NonFinite(Conflict):
    """The memory of a model is not finite any more; nothing of it is kept."""

    title = "Memory not finite"


@dataclass(frozen=True)
class SessionAdapter(TextModelAdapter):
    """Adapter of a network whose requests have a session each.

    Attributes:
        net: The network.
        digest: Digest of its weights; states belong to it.
        method: Name of its attention in `usage`.
    """

    tokenizer: OffsetTokenizer
    scheduler: Scheduler[RequestSession]
    net: Any
    digest: str
    method: str

    def limit_tokens(self, ids: Sequence[int], max_tokens: int | None) -> int:
        """Longest answer to a prompt: `max_tokens`, or as many as fit the context."""
        room = self.context - len(ids)
        return room if max_tokens is None else min(max_tokens, room)

    def build_session_request(
        self, ids: Sequence[int], max_tokens: int, options: GenerationOptions, session: SessionSource[Any]
    ) -> GenerationRequest:
        """The engine request for a prompt that a session reads."""
        return GenerationRequest(
            ids, max_tokens=max_tokens, stop_token_ids=self.tokenizer.eos, priority=priority_of(options), source=session
        )

    def usage(self, requests: Sequence[GenerationRequest]) -> LongctxUsage:
        stats = [request.stats for request in requests]
        held, dense = sum(s.kv_bytes for s in stats), sum(s.kv_bytes_dense for s in stats)
        return LongctxUsage(
            method=self.method,
            knobs={},
            kv_bytes=held,
            kv_bytes_dense=dense,
            kv_ratio=held / dense if dense else 1.0,
            prefill_density=sum(s.prefill_density for s in stats) / len(stats),
            full_steps=0,
            backend="torch",
            cached_tokens=sum(s.cached_tokens for s in stats),
            preempted=0,
            fallback=None,
        )


class StatelessRequestSession(RequestSession):
    """A session with caches, all of which it reads."""

    def __init__(self, session: Any, dense_token_bytes: int) -> None:
        self.session, self.num_read, self._dense_token_bytes = session, 0, dense_token_bytes

    @property
    def nbytes(self) -> int:
        held = self.session.nbytes
        return sum(held) if isinstance(held, list) else int(held)

    @property
    def dense_nbytes(self) -> int:
        return self.num_read * self._dense_token_bytes

    def feed(self, tokens: Sequence[int]) -> Tensor:
        logits: Tensor = self.session.feed(read_ids(self.session.net, tokens))[0]
        self.num_read += len(tokens)
        return check_finite(logits)


@dataclass(frozen=True)
class StatelessSessionAdapter(SessionAdapter):
    """Adapter of a network whose sessions begin empty; it opens them itself, see `SessionSource`.

    Attributes:
        dense_token_bytes: Bytes of a token's keys and values in dense attention of the same sizes.
        observe: Called with each session at the end of its answer, for metrics.
    """

    dense_token_bytes: int = 0
    observe: Callable[[Any], None] = lambda _session: None

    @property
    def max_bytes(self) -> int:
        """Keys and values of a whole context, and as much again for what else a mixer caches."""
        return 2 * self.context * self.dense_token_bytes

    def open(self) -> StatelessRequestSession:
        """An empty session."""
        return StatelessRequestSession(self.net.session(1), self.dense_token_bytes)

    def on_finish(self, session: StatelessRequestSession, _last: Sequence[int]) -> None:
        """Pass the session to the observer."""
        self.observe(session.session)

    def prepare(
        self,
        ids: Sequence[int],
        max_tokens: int | None,
        options: GenerationOptions,
        field: str,
        text: str | None,
        state: RequestState | None,
    ) -> GenerationRequest:
        """A request with an empty session.

        Raises:
            InvalidOption: A knob; there is none.
        """
        refuse_knobs(options.longctx, self.name)
        return self.build_session_request(ids, self.limit_tokens(ids, max_tokens), options, self)


def read_ids(net: nn.Module, tokens: Sequence[int]) -> Tensor:
    """Tokens [1,t] where a network lies."""
    return to_device(list(tokens), next(net.parameters()).device, torch.long)[None]


def check_finite(logits: Tensor) -> Tensor:
    """Return the logits, if they are finite.

    Raises:
        NonFinite: They are not.
    """
    if not bool(torch.isfinite(logits).all()):
        detail = "The model's memory is not finite any more."
        raise NonFinite(detail, hint="The session stays at its last good version; send something else.")
    return logits
