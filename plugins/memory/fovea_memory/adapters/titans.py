"""Titans adapter: models whose memory learns while they read, and is kept in a session where the request names one.

Knows sessions, their bytes and the update of each token; knows nothing about where sessions are stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from fovea.api.longctx import LongctxAnswer, Surprise
from fovea.api.text import GenerationOptions
from fovea.errors import Conflict, InvalidOption, Malformed
from fovea_memory import metrics
from fovea_memory.adapters.landmark_options import refuse_knobs
from fovea_memory.adapters.session import NonFinite, SessionAdapter, check_finite, read_ids
from fovea_memory.mixers.titans import StateError, StateMismatch, TitansSession
from fovea_memory.request_session import RequestSession
from fovea_memory.request_state import SessionTransaction, TokenUpdate
from services.llm_longctx.engine import GenerationRequest
from services.llm_longctx.serving.adapters.base import RequestState

MAX_UPDATES = 2048
"""Most tokens of a request whose memory updates are kept, the last ones."""


class TitansRequestSession(RequestSession):
    """A Titans session, whose memory has a constant size and is read whole."""

    session: TitansSession

    def __init__(self, model: str, session: TitansSession, muted: Sequence[int], dense_token_bytes: int) -> None:
        self.session, self.num_read, self._model = session, 0, model
        self._muted, self._dense_token_bytes = list(muted), dense_token_bytes
        self.traces: list[tuple[list[int], Tensor]] = []

    @property
    def nbytes(self) -> int:
        return self.session.nbytes

    @property
    def dense_nbytes(self) -> int:
        return self.session.index * self._dense_token_bytes

    @property
    def updates(self) -> list[TokenUpdate]:
        """Memory updates of this request's tokens."""
        return [
            TokenUpdate(token, *(float(x) for x in row))
            for tokens, trace in self.traces
            for token, row in zip(tokens, trace.tolist(), strict=True)
        ][-MAX_UPDATES:]

    def feed(self, tokens: Sequence[int]) -> Tensor:
        logits = self.session.feed(read_ids(self.session.net, tokens))[0]
        try:
            check_finite(logits)
        except NonFinite:
            metrics.NONFINITE_STATES.labels(self._model).inc()
            raise
        self.num_read += len(tokens)
        self.traces.append((list(tokens), self.session.trace[0].mean(1)))
        for token in self._muted:
            logits[:, token] = -torch.inf
        return logits

    def fork(self) -> Self:
        twin = super().fork()
        twin.traces = list(self.traces)
        return twin


@dataclass(eq=False)
class _TitansSource:
    """Opens the session of one request, and keeps it at the end of its answer; see `SessionSource`.

    Attributes:
        start: The session that it begins with.
        transaction: The stored session that it continues, if there is one.
        finished: The first answer's session at its end.
    """

    adapter: TitansAdapter
    start: TitansSession
    transaction: SessionTransaction | None
    finished: TitansRequestSession | None = None

    @property
    def max_bytes(self) -> int:
        """Constant, however much it reads."""
        return self.start.nbytes

    def open(self) -> TitansRequestSession:
        """A session that continues from `start`."""
        adapter = self.adapter
        return TitansRequestSession(adapter.name, self.start, adapter.muted, adapter.dense_token_bytes)

    def on_finish(self, session: TitansRequestSession, last: Sequence[int]) -> None:
        """Keep the session; a stored one must have read the whole answer."""
        if self.transaction is not None and last:
            session.feed(last)
        if self.finished is None or not session.is_fork:
            self.finished = session


@dataclass(frozen=True)
class TitansAdapter(SessionAdapter):
    """Adapter of a Titans network.

    Attributes:
        muted: Tokens that are never sampled.
        dense_token_bytes: Bytes of a token's keys and values in dense attention of the same sizes.
    """

    muted: tuple[int, ...] = ()
    dense_token_bytes: int = 0

    def prepare(
        self,
        ids: Sequence[int],
        max_tokens: int | None,
        options: GenerationOptions,
        field: str,
        text: str | None,
        state: RequestState | None,
    ) -> GenerationRequest:
        """A request that continues a stored session, or begins with an empty memory.

        Raises:
            InvalidOption: A knob, or more than one answer from a session.
            Conflict: The session's state is not of these weights.
        """
        refuse_knobs(options.longctx, self.name)
        transaction = state if isinstance(state, SessionTransaction) else None
        if transaction is not None and options.n != 1:
            raise InvalidOption("A session gives one answer at a time.", hint="Leave n out.", field="n")
        start = self.restore(transaction.state) if transaction is not None else self.net.session(1)
        source = _TitansSource(self, start, transaction)
        return self.build_session_request(ids, self.limit_tokens(ids, max_tokens), options, source)

    async def extra_payload(self, request: GenerationRequest) -> LongctxAnswer | None:
        source = request.source
        if not isinstance(source, _TitansSource) or source.finished is None:
            return None
        return await asyncio.to_thread(self._describe, source.finished, source.transaction)

    def restore(self, state: bytes) -> TitansSession:
        """Restore a stored session.

        Raises:
            Conflict: The bytes are damaged, or of other weights.
        """
        try:
            session: TitansSession = self.net.restore(state, self.digest)
        except StateError as error:
            detail = f"The session can't go on: {error}."
            raise Conflict(detail, hint="Its model was loaded anew with other weights: start a new session.") from error
        return session

    def import_state(self, state: bytes) -> TitansSession:
        """Restore a session from exported bytes that a caller uploads.

        Raises:
            Malformed: The bytes are no state of this model.
            Conflict: They are of other weights.
        """
        try:
            session: TitansSession = self.net.restore(state, self.digest)
        except StateMismatch as error:
            hint = "Import it into a session of the model that exported it."
            raise Conflict(f"The state can't be taken: {error}.", hint=hint) from error
        except StateError as error:
            raise Malformed(f"These bytes are no state: {error}.", field="state") from error
        if session.batch != 1 or not 0 <= session.index < 2**53:
            raise Malformed("These bytes are no state of one stream.", field="state")
        return session

    def serialize(self, session: TitansSession, version: int) -> bytes:
        """Serialise a session.

        Raises:
            NonFinite: Its state is not finite.
        """
        try:
            return session.export(self.digest, version)
        except StateError as error:
            metrics.NONFINITE_STATES.labels(self.name).inc()
            detail = f"The model's memory can't be kept: {error}."
            raise NonFinite(detail, hint="The session stays at its last good version.") from error

    def _describe(self, session: TitansRequestSession, transaction: SessionTransaction | None) -> LongctxAnswer:
        updates, surprise = session.updates, None
        if updates:
            losses = [update.loss for update in updates]
            surprise = Surprise(tokens=len(losses), mean=sum(losses) / len(losses), max=max(losses))
        if transaction is not None:
            transaction.new_state = self.serialize(session.session, transaction.version + 1)
            transaction.updates, transaction.tokens = updates, session.session.index
        state_bytes = len(transaction.new_state) if transaction is not None else session.nbytes
        metrics.STATE_BYTES.labels(self.name).set(state_bytes)
        if surprise is not None:
            metrics.SURPRISE.labels(self.name).observe(surprise.mean)
        return LongctxAnswer(
            session_id=transaction.id if transaction else None,
            state_version=transaction.version + 1 if transaction else None,
            state_bytes=state_bytes,
            surprise=surprise,
        )
