"""What a session must offer to be scheduled. Knows tokens and logits; knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self

from torch import Tensor

__all__ = ["Stream"]


class Stream(Protocol):
    """One request's session. Belongs to the scheduler's thread from its opening to its close."""

    @property
    def read(self) -> int:
        """Tokens of the request that it has read; more than none where it was opened behind a known beginning."""
        ...

    @property
    def room(self) -> int:
        """Tokens, at least one, until the next border of its own grid: most that is fed at a time."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of what it remembers."""
        ...

    @property
    def dense_nbytes(self) -> int:
        """Bytes that dense attention of the same sizes would remember of as many tokens."""
        ...

    @property
    def density(self) -> float:
        """Share of what it remembered that it looked at while it read."""
        ...

    def feed(self, tokens: Sequence[int]) -> Tensor:
        """Read tokens; their logits [t,V].

        Raises:
            FoveaError: It can't go on.
        """
        ...

    def fork(self) -> Self:
        """A session that goes its own way from here."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...
