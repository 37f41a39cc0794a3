"""Sessions of models that are no paged decoder: what one must offer to be scheduled, and where a request gets one.

Knows tokens and logits; knows no model.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol, Self, TypeVar

from torch import Tensor

CHUNK_TOKENS = 64
"""Tokens read at a time, where outputs do not depend on it."""


class RequestSession(ABC):
    """Session of one request. Belongs to the scheduler's thread from its opening to its close.

    Attributes:
        session: The stream of the model.
        num_read: Tokens of the request that it has read; more than none where it was opened behind a known beginning.
        is_fork: Whether it is of an answer behind the request's first.
    """

    session: Any
    num_read: int
    is_fork = False

    @property
    def max_chunk(self) -> int:
        """Most tokens to feed at a time, at least one: up to the next border of its own grid, where it has one."""
        return CHUNK_TOKENS

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of what it remembers."""

    @property
    @abstractmethod
    def dense_nbytes(self) -> int:
        """Bytes that dense attention of the same sizes would remember of as many tokens."""

    @property
    def density(self) -> float:
        """Share of what it remembered that it looked at while it read."""
        return 1.0

    @abstractmethod
    def feed(self, tokens: Sequence[int]) -> Tensor:
        """Read tokens; their logits [t,V].

        Raises:
            FoveaError: It can't go on.
        """

    def fork(self) -> Self:
        """A session that goes its own way from here."""
        twin = copy.copy(self)
        twin.session, twin.is_fork = self.session.fork(), True
        return twin

    def close(self) -> None:  # noqa: B027  # none holds more than memory
        """Give back what it holds; nothing, where that is memory alone."""


T = TypeVar("T", bound=RequestSession)


class SessionSource(Protocol[T]):
    """Opens the session of a request and gets it back at the end of an answer. Called on the scheduler's thread."""

    @property
    def max_bytes(self) -> int:
        """Bytes that a session of the request may come to."""

    def open(self) -> T:
        """A session; called when the request is admitted.

        Raises:
            FoveaError: There is none for this request.
        """

    def on_finish(self, session: T, last: Sequence[int]) -> None:
        """An answer has ended: its session, and the last token drawn, which the session has not read."""
