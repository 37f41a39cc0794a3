"""OpenAI's Responses API on the wire: items in, items out, and the events of a stream."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from fovea.api.bounded_lists import ItemList, Messages, Tools
from fovea.api.interventions import Captured
from fovea.api.longctx import LongctxUsage
from fovea.api.structured import JsonSchemaFormat
from fovea.api.text import ContentPart, PromptTokensDetails, RequestOptions


class InputItem(BaseModel, extra="allow"):
    """A message, a call of a function that was made, or its result."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | Messages[ContentPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | Messages[ContentPart] | None = None


class FunctionTool(BaseModel, extra="allow"):
    """A function that the model may call."""

    type: Literal["function"] = "function"
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class TextFormat(JsonSchemaFormat):
    """The form of the answer; `json_schema` has its schema next to the type."""

    type: Literal["text", "json_object", "json_schema"] = "text"


class TextOutput(BaseModel, extra="allow"):
    """How the answer is written."""

    format: TextFormat | None = None


class Reasoning(BaseModel, extra="allow"):
    """How much a model thinks before it answers."""

    effort: str | None = None


class ResponsesRequest(RequestOptions):
    """A request for an answer."""

    input: str | Messages[InputItem] = Field(description="A text, or items: messages, calls and their results.")
    instructions: str | None = Field(None, description="A system message in front.")
    max_output_tokens: int | None = Field(None, ge=1)
    text: TextOutput | None = Field(None, description="The form of the answer.")
    tools: Tools[FunctionTool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    previous_response_id: str | None = Field(None, description="Go on after this stored response.")
    store: bool = Field(False, description="Keep the response and its conversation for 30 days.")
    metadata: dict[str, Any] | None = None
    user: str | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="As in chats: more names for the template.")
    include_reasoning: bool = Field(True, description="As in chats: return what the model thinks.")
    reasoning: Reasoning | None = Field(None, description="How much a model with a thinking mode thinks.")


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
    model: str  # before what a caller wrote: the gateway books the usage of a stream under the first that it meets
    status: Literal["in_progress", "completed", "incomplete"]
    error: None = None
    incomplete_details: dict[str, str] | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, Any] = {}
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


class InputItemList(ItemList[dict[str, Any]]):
    """A page of the items that a stored response was made from."""

    first_id: str | None
    last_id: str | None
    has_more: bool = False
