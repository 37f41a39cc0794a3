"""What is fetched for a request before it is read: a session's memory, or a document.

Knows bytes and tokens; knows neither where they were kept nor what a model makes of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict

from services.llm_longctx.serving.adapters.landmark_options import LandmarkOptions
from shared.api.text import ChatRequest, CompletionRequest

__all__ = ["Brought", "Document", "PreparedRequest", "Remembered", "TokenUpdate"]


@dataclass(frozen=True, slots=True)
class Document:
    """A text that was read once and is asked about.

    Attributes:
        id: Its name.
        tenant: Whose it is; what was read for one tenant is never another's beginning.
        text: What it says.
        ids: Its tokens.
        options: How it was read.
        offer: Called once the last whole stretch was read here: others may want it. Must not block.
    """

    id: str
    tenant: str
    text: str
    ids: tuple[int, ...]
    options: LandmarkOptions
    offer: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class TokenUpdate:
    """What one token did to the memory, means over layers and heads.

    Attributes:
        token: Its id.
        loss: The memory's error before it learned: the surprise.
        rate: How strongly it learned, theta.
        forgotten: Share of what it knew that it let go, alpha.
    """

    token: int
    loss: float
    rate: float
    forgotten: float


@dataclass(eq=False, slots=True)
class Remembered:
    """A session's memory, as it was before a request and as it is behind it.

    Attributes:
        id: The session's name.
        version: Of the state that the request begins with.
        state: That state.
        commit: Stores what came of it, with the request's answer as JSON. Blocks; raises Conflict if somebody else has
            written since.
        after: The new state, once the answer is whole.
        tokens: Tokens that it has read then.
        learnt: What the request's tokens did to it.
    """

    id: str
    version: int
    state: bytes
    commit: Callable[[Remembered, str], None]
    after: bytes = b""
    tokens: int = 0
    learnt: list[TokenUpdate] = field(default_factory=list)


Brought = Remembered | Document


class PreparedRequest(BaseModel):
    """A request, with what was fetched for it."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    asked: ChatRequest | CompletionRequest
    brought: Brought
