"""A Titans model's voice: what it reads is learnt while it is read, and kept in a session where the request names one.

Knows sessions, their bytes and what each token did to the memory; knows nothing about where sessions are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from services.llm_longctx.engine import GenerationRequest
from services.llm_longctx.mixers.titans.networks import TitansSession
from services.llm_longctx.mixers.titans.state import StateError, StateMismatch
from services.llm_longctx.serving.adapters.landmark_options import refuse_knobs
from services.llm_longctx.serving.request_state import Brought, Remembered, TokenUpdate
from services.llm_longctx.serving.session_model import MixerVoice, NonFinite, finite
from shared import figures
from shared.api.text import GenerationOptions, LongctxAnswer, Surprise
from shared.errors import Conflict, InvalidOption, Malformed

__all__ = ["TitansAdapter", "TitansStream"]

CHUNK = 64
"""Tokens read at a time; outputs do not depend on it."""

TRACED = 2048
"""Tokens of a request whose effect on the memory is told, the last ones."""


class TitansStream:
    """A Titans session as the scheduler runs it; see `RequestSession`."""

    def __init__(
        self,
        model: str,
        session: TitansSession,
        mute: Sequence[int],
        dense_token_bytes: int,
        num_read: int = 0,
        traces: Sequence[tuple[list[int], Tensor]] = (),
    ) -> None:
        self.session, self.num_read, self._model = session, num_read, model
        self._mute, self._dense = list(mute), dense_token_bytes
        self._traces = list(traces)

    @property
    def max_chunk(self) -> int:
        """Any cut is as good as another."""
        return CHUNK

    @property
    def nbytes(self) -> int:
        """Bytes of the memory; constant."""
        return self.session.nbytes

    @property
    def dense_nbytes(self) -> int:
        """Keys and values of every token that the session has read."""
        return self.session.index * self._dense

    @property
    def learnt(self) -> list[TokenUpdate]:
        """What the tokens of this request did to the memory."""
        return [
            TokenUpdate(token, *(float(x) for x in row))
            for tokens, trace in self._traces
            for token, row in zip(tokens, trace.tolist(), strict=True)
        ][-TRACED:]

    @property
    def density(self) -> float:
        """All of it."""
        return 1.0

    def feed(self, tokens: Sequence[int]) -> Tensor:
        """Read tokens, and learn them; their logits [t,V]."""
        logits = self.session.feed(torch.tensor([list(tokens)]))[0]
        try:
            finite(logits)
        except NonFinite:
            figures.nonfinite(self._model)
            raise
        self.num_read += len(tokens)
        self._traces.append((list(tokens), self.session.trace[0].mean(1)))
        logits[:, self._mute] = -torch.inf
        return logits

    def fork(self) -> Self:
        """A stream that goes its own way from here."""
        return type(self)(self._model, self.session.fork(), self._mute, self._dense, self.num_read, self._traces)

    def close(self) -> None:
        """Nothing is held beyond memory."""


@dataclass(eq=False)
class _Source:
    """Opens the session of one request, and keeps it at the end of each answer; see `SessionSource`.

    Attributes:
        start: What it begins with.
        remembered: The stored session that it goes on from, if there is one.
        finished: The first answer's session at its end.
    """

    adapter: TitansAdapter
    start: TitansSession
    remembered: Remembered | None
    finished: TitansStream | None = None

    @property
    def max_bytes(self) -> int:
        """Constant, however much it reads."""
        return self.start.nbytes

    def open(self) -> TitansStream:
        """A session that goes on from the start."""
        adapter = self.adapter
        return TitansStream(adapter.name, self.start, adapter.mute, adapter.dense_token_bytes)

    def on_finish(self, session: TitansStream, last: Sequence[int]) -> None:
        """Keep it; whoever goes on from it must have read the whole answer."""
        if self.remembered is not None and last:
            session.feed(last)
        self.finished = self.finished or session


@dataclass(frozen=True)
class TitansAdapter(MixerVoice):
    """A Titans network, ready to speak.

    Attributes:
        mute: Tokens that are never drawn.
        dense_token_bytes: What dense attention of its sizes would remember of a token.
    """

    mute: tuple[int, ...] = ()
    dense_token_bytes: int = 0

    def prepare(
        self,
        ids: Sequence[int],
        wanted: int | None,
        options: GenerationOptions,
        field: str,
        text: str | None,
        brought: Brought | None,
    ) -> GenerationRequest:
        """A request behind what the session remembers.

        Raises:
            InvalidOption: A knob, or more than one answer from a session.
            Conflict: The session's state is not of these weights.
        """
        refuse_knobs(options.longctx, self.name)
        session = brought if isinstance(brought, Remembered) else None
        if session is not None and options.n != 1:
            detail = "A session remembers one answer at a time."
            raise InvalidOption(detail, hint="Leave n out.", field="n")
        start = self.opened(session.state) if session is not None else self.net.session(1)
        return self.request_of(ids, self.most(ids, wanted), options, _Source(self, start, session))

    def extra_payload(self, request: GenerationRequest) -> LongctxAnswer | None:
        """What the session remembers now; None where no answer ended well."""
        source = request.session
        if not isinstance(source, _Source) or source.finished is None:
            return None
        return self._describe(source.finished, source.remembered)

    def opened(self, state: bytes) -> TitansSession:
        """The session whose bytes these are.

        Raises:
            Conflict: They are damaged, or of other weights.
        """
        try:
            session: TitansSession = self.net.restore(state, self.digest)
        except StateError as error:
            detail = f"The session can't go on: {error}."
            raise Conflict(detail, hint="Its model was loaded anew with other weights: start a new session.") from error
        return session

    def given(self, state: bytes) -> TitansSession:
        """The session of exported bytes that a caller brings.

        Raises:
            Malformed: They are no state that this model could have written.
            Conflict: They are of other weights.
        """
        try:
            session: TitansSession = self.net.restore(state, self.digest)
        except StateMismatch as error:
            raise Conflict(f"The state can't be taken: {error}.", hint="It goes where it came from.") from error
        except StateError as error:
            raise Malformed(f"These bytes are no state: {error}.", field="state") from error
        if session.batch != 1 or not 0 <= session.index < 2**53:
            raise Malformed("These bytes are no state of one stream.", field="state")
        return session

    def packed(self, session: TitansSession, version: int) -> bytes:
        """The session as bytes.

        Raises:
            NonFinite: It holds what is no number.
        """
        try:
            return session.export(self.digest, version)
        except StateError as error:
            figures.nonfinite(self.name)
            detail = f"What the model would remember can't be kept: {error}."
            raise NonFinite(detail, hint="The session stays at its last good version.") from error

    def _describe(self, stream: TitansStream, session: Remembered | None) -> LongctxAnswer:
        learnt, known = stream.learnt, None
        if learnt:
            losses = [one.loss for one in learnt]
            known = Surprise(tokens=len(losses), mean=sum(losses) / len(losses), max=max(losses))
        if session is not None:
            session.after, session.learnt = self.packed(stream.session, session.version + 1), learnt
            session.tokens = stream.session.index
        size = len(session.after) if session is not None else stream.nbytes
        figures.titans(self.name, size, known.mean if known else None)
        return LongctxAnswer(
            session_id=session.id if session else None,
            state_version=session.version + 1 if session else None,
            state_bytes=size,
            surprise=known,
        )
