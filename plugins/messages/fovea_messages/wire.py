"""Anthropic's Messages API on the wire: conversations of blocks in, a message of blocks out."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, Field

from fovea.api.bounded_lists import Messages, Tools
from fovea.api.longctx import LongctxOptions
from fovea.api.request_fields import Refusal
from fovea.api.sampling import MAX_STOPS, NullIsAbsent

REFUSED: Final = {
    "container": Refusal("No code is run here"),
    "context_management": Refusal("Shorten the conversation yourself"),
    "mcp_servers": Refusal("Call the server yourself, and send its answer as a tool_result"),
    "speed": Refusal("There is one speed", "standard"),
}
"""Fields that are known and not served."""

ACCEPTED: Final = frozenset(
    {
        *("cache_control", "diagnostics", "inference_geo", "metadata", "service_tier", "user_profile_id"),
        *("workspace_id", "thinking.budget_tokens", "thinking.display"),
        *(f"*.{name}" for name in ("cache_control", "caller", "citations", "data", "is_error", "signature")),
    }
)
"""Fields that are known and change nothing in an answer; `*.` begins one of any nested object."""


class ContentBlock(BaseModel, extra="allow"):
    """A piece of a message: `text`, `tool_use`, `tool_result` or `thinking`."""

    type: str
    text: str | None = None
    id: str | None = Field(None, description="Of a tool_use.")
    name: str | None = Field(None, description="Of a tool_use: the tool.")
    input: dict[str, Any] | None = Field(None, description="Of a tool_use: its arguments.")
    tool_use_id: str | None = Field(None, description="Of a tool_result: the tool_use that it answers.")
    content: str | Messages[ContentBlock] | None = Field(None, description="Of a tool_result.")
    thinking: str | None = Field(None, description="Of thinking: the thoughts.")


class Turn(BaseModel, extra="allow"):
    """One turn of the conversation."""

    role: Literal["user", "assistant"]
    content: str | Messages[ContentBlock]


class ToolDefinition(BaseModel, extra="allow"):
    """A tool that the caller can run."""

    type: str | None = None
    name: str
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = Field(None, description="Refuse keywords of the schema that can't be enforced.")


class ToolChoice(BaseModel, extra="allow"):
    """Whether a tool must be used."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = Field(None, description="With `tool`.")
    disable_parallel_tool_use: bool = False


class Thinking(BaseModel, extra="allow"):
    """Whether the model thinks before it answers."""

    type: Literal["enabled", "adaptive", "disabled"]


class OutputFormat(BaseModel, extra="allow"):
    """The form of the answer: JSON that meets a schema."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(BaseModel, extra="allow"):
    """How the answer is written."""

    effort: str | None = None
    format: OutputFormat | None = None


class Conversation(NullIsAbsent):
    """The conversation to answer, and its tools."""

    model: str | None = Field(None, description="Name of the model; left out, the default one.")
    messages: Messages[Turn] = Field(min_length=1)
    system: str | Messages[ContentBlock] | None = None
    tools: Tools[ToolDefinition] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    strict: bool = Field(False, description="Ours: refuse fields that are not known here.")


class MessagesRequest(Conversation):
    """A conversation to go on with; a last turn of the assistant is gone on with."""

    max_tokens: int = Field(ge=1)
    stop_sequences: list[Annotated[str, Field(min_length=1)]] | None = Field(None, max_length=MAX_STOPS)
    stream: bool = False
    temperature: float | None = Field(None, ge=0, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=0)
    top_p: float | None = Field(None, ge=0, le=1)
    longctx: LongctxOptions | None = Field(None, description="Ours, as in chats.")


StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class MessageUsage(BaseModel):
    """Tokens read and made; those of a cached prefix count apart."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0


class AnthropicMessage(BaseModel):
    """The answer."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[dict[str, Any]] = Field(description="Blocks of type `thinking`, `text` and `tool_use`.")
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    usage: MessageUsage
    warnings: list[str] | None = Field(None, description="Ours: fields that were ignored, a sentence each.")


class AnthropicErrorFacts(BaseModel):
    """What went wrong."""

    type: str
    message: str


class AnthropicError(BaseModel):
    """Anthropic's error body."""

    type: Literal["error"] = "error"
    error: AnthropicErrorFacts
    request_id: str | None = None


class TokenCount(BaseModel):
    """Tokens of a conversation under the model's template."""

    input_tokens: int
    warnings: list[str] | None = Field(None, description="Ours: fields that were ignored, a sentence each.")
