"""A conversation as data: what may be asked, and answers whose text is one word away. Sends nothing.

The wire types are `shared.api.text`'s; these add what a caller wants first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from shared.api.text import ChatChunk, ChatCompletion, ChatMessage

__all__ = ["ChatAnswer", "ChatOptions", "ChatPiece", "Messages", "build_messages"]


class ChatOptions(TypedDict, total=False):
    """Options of a chat request, as `shared.api.text.ChatRequest` describes them; None is the model's own default."""

    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    seed: int | None
    stop: str | list[str] | None
    presence_penalty: float | None
    frequency_penalty: float | None
    repetition_penalty: float | None
    logit_bias: dict[int, float] | None
    n: int | None
    logprobs: bool | None
    top_logprobs: int | None
    response_format: dict[str, Any] | None
    longctx: dict[str, Any] | None
    session_id: str | None
    document_id: str | None


class ChatAnswer(ChatCompletion):
    """A whole answer."""

    @property
    def text(self) -> str:
        """What the model said (its first choice)."""
        return self.choices[0].message.content


class ChatPiece(ChatChunk):
    """One event of a streamed answer; the last one carries `usage` and no choice."""

    @property
    def text(self) -> str:
        """What this piece adds to the first choice; empty when it adds nothing."""
        return next((choice.delta.content or "" for choice in self.choices if choice.index == 0), "")


Messages = str | Sequence[Mapping[str, Any] | ChatMessage]
"""A question, or a conversation as OpenAI's `messages`."""


def build_messages(said: Messages, system: str | None = None) -> list[dict[str, Any]]:
    """A conversation in OpenAI's form, behind a system prompt where there is one."""
    turns = [{"role": "user", "content": said}] if isinstance(said, str) else [_turn(turn) for turn in said]
    return [{"role": "system", "content": system}, *turns] if system else turns


def _turn(turn: Mapping[str, Any] | ChatMessage) -> dict[str, Any]:
    return turn.model_dump(exclude_none=True) if isinstance(turn, ChatMessage) else dict(turn)
