"""Chat requests and answers as data: messages, options, and answers with a `text` property.

The wire types are those of `fovea.api.text`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from fovea.api.text import ChatChunk, ChatCompletion, ChatMessage

ChatOptions = TypedDict(  # noqa: UP013  # several a line
    "ChatOptions",
    {
        "max_tokens": int | None, "max_completion_tokens": int | None, "min_tokens": int, "ignore_eos": bool,
        "temperature": float | None, "top_p": float | None, "top_k": int | None, "min_p": float | None,
        "presence_penalty": float | None, "frequency_penalty": float | None, "repetition_penalty": float | None,
        "seed": int | None, "n": int | None, "stop": str | list[str] | None, "stop_token_ids": list[int] | None,
        "include_stop_str_in_output": bool, "skip_special_tokens": bool, "logit_bias": dict[int, float] | None,
        "allowed_token_ids": list[int] | None, "bad_words": list[str] | None, "logprobs": bool | None,
        "top_logprobs": int | None, "prompt_logprobs": int | None, "response_format": dict[str, Any] | None,
        "structured_outputs": dict[str, Any] | None, "tools": list[dict[str, Any]] | None,
        "tool_choice": str | dict[str, Any] | None, "parallel_tool_calls": bool | None, "strict": bool,
        "add_generation_prompt": bool | None, "continue_final_message": bool, "add_special_tokens": bool | None,
        "chat_template": str | None, "chat_template_kwargs": dict[str, Any] | None, "reasoning_effort": str | None,
        "include_reasoning": bool, "truncate_prompt_tokens": int | None, "truncation_side": Literal["left", "right"],
        "user": str | None, "service_tier": str | None, "metadata": dict[str, Any] | None, "store": bool | None,
        "longctx": dict[str, Any] | None, "interventions": list[dict[str, Any]] | None,
        "capture": list[dict[str, Any]] | None, "compare": list[str | dict[str, Any]] | None,
        "session_id": str | None, "document_id": str | None,
    },
    total=False,
)  # fmt: skip
"""Options of a chat request, as `fovea.api.text.ChatRequest` describes them; None means the model's default."""


class ChatAnswer(ChatCompletion):
    """A whole answer."""

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return self.choices[0].message.content or ""


class ChatPiece(ChatChunk):
    """One event of a streamed answer; the last one carries `usage` and no choice."""

    @property
    def text(self) -> str:
        """The text that this event adds to the first choice; empty when it adds none."""
        return next((choice.delta.content or "" for choice in self.choices if choice.index == 0), "")


Messages = str | Sequence[Mapping[str, Any] | ChatMessage]
"""A question, or a conversation as OpenAI's `messages`."""


def build_messages(messages: Messages, system: str | None = None) -> list[dict[str, Any]]:
    """Build OpenAI's `messages` from a question or a conversation, with the system prompt in front."""
    turns = (
        [{"role": "user", "content": messages}]
        if isinstance(messages, str)
        else [turn.model_dump(exclude_none=True) if isinstance(turn, ChatMessage) else dict(turn) for turn in messages]
    )
    return [{"role": "system", "content": system}, *turns] if system else turns
