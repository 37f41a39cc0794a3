"""A Titans model's voice: what it reads is learnt while it is read, and kept in a session where the request names one.

Knows sessions, their bytes and what each token did to the memory; knows nothing about where sessions are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from services.llm_longctx.engine.stream import Stream
from services.llm_longctx.mixers.titans.networks import TitansSession
from services.llm_longctx.mixers.titans.state import StateError, StateMismatch
from services.llm_longctx.serving.adapters.landmark_options import refuse_knobs
from services.llm_longctx.serving.generation import Prompt
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
    """A Titans session as the scheduler knows it; see `engine.stream.Stream`."""

    def __init__(self, model: str, session: TitansSession, mute: Sequence[int], dense_token_bytes: int) -> None:
        self.session, self.read, self._model = session, 0, model
        self._mute, self._dense = list(mute), dense_token_bytes
        self._traces: list[tuple[list[int], Tensor]] = []

    @property
    def room(self) -> int:
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
        self.read += len(tokens)
        self._traces.append((list(tokens), self.session.trace[0].mean(1)))
        logits[:, self._mute] = -torch.inf
        return logits

    def fork(self) -> Self:
        """A stream that goes its own way from here."""
        twin = object.__new__(type(self))
        vars(twin).update({**vars(self), "session": self.session.fork(), "_traces": list(self._traces)})
        return twin

    def close(self) -> None:
        """Nothing is held beyond memory."""


@dataclass(frozen=True)
class TitansAdapter(MixerVoice):
    """A Titans network, ready to speak.

    Attributes:
        mute: Tokens that are never drawn.
        dense_token_bytes: What dense attention of its sizes would remember of a token.
    """

    mute: tuple[int, ...] = ()
    dense_token_bytes: int = 0

    def reading(
        self,
        ids: Sequence[int],
        wanted: int | None,
        options: GenerationOptions,
        field: str,
        text: str | None,
        brought: Brought | None,
    ) -> Prompt:
        """The prompt behind what the session remembers; what it remembers then is told with the answer.

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
        prompt, ends = self.plain(ids, wanted, options), list[TitansStream]()

        def keeps(stream: Stream, last: Sequence[int]) -> None:
            assert isinstance(stream, TitansStream)  # noqa: S101  # `opens` opened it
            if session is not None and last:  # who goes on must have read the whole answer
                stream.feed(last)
            ends.append(stream)

        return replace(
            prompt,
            opens=lambda: TitansStream(self.name, start, self.mute, self.dense_token_bytes),
            keeps=keeps,
            most_bytes=start.nbytes,
            told=lambda: self._told(ends[0], session) if ends else None,
        )

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

    def _told(self, stream: TitansStream, session: Remembered | None) -> LongctxAnswer:
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
