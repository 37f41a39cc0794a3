"""Request state: what is loaded for a request before the model reads it, a session or a document.

Knows bytes and tokens; knows neither where they are stored nor what a model makes of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from fovea_memory.adapters.landmark_options import LandmarkOptions


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A stored document, which a request asks about.

    Attributes:
        id: Its id.
        tenant: Its owner; cached prefixes are never shared between tenants.
        text: Its text.
        ids: Its tokens.
        options: How it is read.
        on_prefilled: Called once its last checkpoint was read here, to share it with other replicas. Must not block.
    """

    id: str
    tenant: str
    text: str
    ids: tuple[int, ...]
    options: LandmarkOptions
    on_prefilled: Callable[[], None] | None = None

    async def commit(self, answer: str) -> None:
        """Nothing is stored: the document stays as it is."""


@dataclass(frozen=True, slots=True)
class TokenUpdate:
    """The update that one token made to the memory, means over layers and heads.

    Attributes:
        token: Its id.
        loss: Error of the memory before the update: the surprise.
        rate: Learning rate theta.
        forgotten: Share of the memory that was forgotten, alpha.
    """

    token: int
    loss: float
    rate: float
    forgotten: float


@dataclass(eq=False, slots=True)
class SessionTransaction:
    """One request of a session: the state it begins with, and the state it will commit.

    Attributes:
        id: The session's id.
        version: Version of the state that the request begins with.
        state: That state.
        write: Writes the new state, with the request's answer as JSON.
        new_state: The new state, once the answer is complete.
        tokens: Tokens that the session has read then.
        updates: Memory updates of the request's tokens.
    """

    id: str
    version: int
    state: bytes
    write: Callable[[SessionTransaction, str], Awaitable[None]]
    new_state: bytes = b""
    tokens: int = 0
    updates: list[TokenUpdate] = field(default_factory=list)

    async def commit(self, answer: str) -> None:
        """Write the new state, with the answer for whoever repeats the request.

        Raises:
            Conflict: Another request has written since.
        """
        await self.write(self, answer)
