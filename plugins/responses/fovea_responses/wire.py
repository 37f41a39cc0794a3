"""OpenAI's Responses API on the wire: items in, items out, and the events of a stream."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fovea.api.bounded_lists import Messages, Tools
from fovea.api.interventions import MAX_CAPTURES, MAX_INTERVENTIONS, Capture, Captured, Intervention
from fovea.api.longctx import LongctxOptions, LongctxUsage
from fovea.api.sampling import SamplingOptions
from fovea.api.structured import JsonSchemaFormat
from fovea.api.text import PromptTokensDetails


class InputPart(BaseModel):
    """A piece of an item; only text is understood."""

    model_config = ConfigDict(extra="allow")

    type: str
    text: str | None = None


class InputItem(BaseModel):
    """A message, a call of a function that was made, or its result."""

    model_config = ConfigDict(extra="allow")

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | Messages[InputPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | Messages[InputPart] | None = None


class FunctionTool(BaseModel):
    """A function that the model may call."""

    model_config = ConfigDict(extra="allow")

    type: Literal["function"] = "function"
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class TextFormat(JsonSchemaFormat):
    """The form of the answer; `json_schema` has its schema next to the type."""

    type: Literal["text", "json_object", "json_schema"] = "text"


class TextOutput(BaseModel):
    """How the answer is written."""

    model_config = ConfigDict(extra="allow")

    format: TextFormat | None = None


class Reasoning(BaseModel):
    """How much a model thinks before it answers."""

    model_config = ConfigDict(extra="allow")

    effort: str | None = None


class ResponsesRequest(SamplingOptions):
    """A request for an answer."""

    model: str | None = None
    input: str | Messages[InputItem] = Field(description="A text, or items: messages, calls and their results.")
    instructions: str | None = Field(None, description="A system message in front.")
    max_output_tokens: int | None = Field(None, ge=1)
    stream: bool = False
    text: TextOutput | None = Field(None, description="The form of the answer.")
    tools: Tools[FunctionTool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    previous_response_id: str | None = Field(None, description="Go on after this stored response.")
    store: bool = Field(False, description="Keep the response and its conversation for 30 days.")
    metadata: dict[str, Any] | None = None
    user: str | None = None
    longctx: LongctxOptions | None = Field(None, description="Ours, as in chats.")
    interventions: list[Intervention] | None = Field(
        None, max_length=MAX_INTERVENTIONS, description="Ours, as in chats: changes inside the model, in order."
    )
    capture: list[Capture] | None = Field(
        None, max_length=MAX_CAPTURES, description="Ours, as in chats: what to read inside the model."
    )
    session_id: str | None = Field(None, description="Ours: the session that remembers, for models with a memory.")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="As in chats: more names for the template.")
    include_reasoning: bool = Field(True, description="As in chats: return what the model thinks.")
    reasoning: Reasoning | None = Field(None, description="How much a model with a thinking mode thinks.")
    strict: bool = Field(False, description="Ours: refuse fields that are not known here.")


class OutputTokensDetails(BaseModel):
    """Tokens of the answer by what they are."""

    reasoning_tokens: int = 0


class ResponseUsage(BaseModel):
    """Tokens read and made."""

    input_tokens: int
    input_tokens_details: PromptTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails = OutputTokensDetails(reasoning_tokens=0)
    total_tokens: int
    longctx: LongctxUsage | None = None


class ResponseObject(BaseModel):
    """An answer."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["in_progress", "completed", "incomplete"]
    error: None = None
    incomplete_details: dict[str, str] | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, Any] = {}
    model: str
    output: list[dict[str, Any]] = Field(description="Messages with text, and calls of functions.")
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    store: bool = False
    temperature: float | None = None
    text: dict[str, Any] = {"format": {"type": "text"}}
    tool_choice: str | dict[str, Any] = "auto"
    tools: list[dict[str, Any]] = []
    top_p: float | None = None
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None = None
    captured: list[Captured] | None = Field(None, description="Ours: what `capture` read.")
    warnings: list[str] | None = Field(None, description="Ours: fields that were ignored, a sentence each.")


class InputItemList(BaseModel):
    """The items that a stored response was made from, oldest first."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool = False
