"""From OpenAI's Responses requests to chats: items become messages. Knows no HTTP and no model."""

from collections.abc import Sequence
from typing import Any

from fovea.api.text import ChatRequest, ContentPart
from fovea.errors import InvalidOption
from fovea_responses.wire import InputItem, ResponsesRequest
from services.llm_longctx.api.chat_chunks import read_chat

NAMES = {
    "response_format": "text.format",
    "max_completion_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
    "messages": "input",
    ".function": "",
}
"""Names in chats of fields that these requests name otherwise."""


def list_input(request: ResponsesRequest) -> list[InputItem]:
    """The items of a request's input; a text is a message of the user."""
    return [InputItem(role="user", content=request.input)] if isinstance(request.input, str) else request.input


def build_chat(request: ResponsesRequest, earlier: Sequence[InputItem] = ()) -> ChatRequest:
    """The chat that answers a request after the items of an earlier conversation. Fields that both have are the same.

    Raises InvalidOption: It has two memories, or holds what only other servers understand.
    """
    if request.previous_response_id is not None and request.session_id is not None:
        hint = "A session remembers by itself; leave previous_response_id out."
        raise InvalidOption("session_id and previous_response_id exclude each other.", hint=hint, field="session_id")
    same = ChatRequest.model_fields.keys() & ResponsesRequest.model_fields.keys() & request.model_fields_set
    fields: dict[str, Any] = {name: getattr(request, name) for name in same}
    fields |= {
        "messages": _build_messages(request, earlier),
        "max_completion_tokens": request.max_output_tokens,
        "reasoning_effort": None if request.reasoning is None else request.reasoning.effort,
        "stream": True,
        "stream_options": {"include_usage": True},
        "tools": [{"type": "function", "function": tool.model_dump(exclude={"type"})} for tool in request.tools or ()],
        "tool_choice": _read_tool_choice(request),
        "parallel_tool_calls": request.parallel_tool_calls if request.tools else None,
    }
    if request.text is not None and request.text.format is not None:
        form = request.text.format
        fields["response_format"] = {"type": form.type}
        if form.type == "json_schema":
            schema = form.model_dump(by_alias=True, include={"name", "description", "schema_", "strict"})
            fields["response_format"]["json_schema"] = schema
    return read_chat(fields)


def _build_messages(request: ResponsesRequest, earlier: Sequence[InputItem]) -> list[dict[str, Any]]:
    found, thought = list[dict[str, Any]](), ""
    if request.instructions:
        found.append({"role": "system", "content": request.instructions})
    # Items before this request's own have indices below 0, which no error ever names: they were answered before.
    for index, item in enumerate((*earlier, *list_input(request)), -len(earlier)):
        if item.type == "reasoning":
            thought = "".join(part if isinstance(part, str) else part.text or "" for part in item.content or ())
            continue
        message = _build_message(item, index)
        if item.type == "function_call" and found and found[-1]["role"] == "assistant":  # of the same turn
            found[-1].setdefault("tool_calls", []).extend(message["tool_calls"])
        else:
            found.append(message)
        if thought and found[-1]["role"] == "assistant":
            found[-1]["reasoning_content"] = found[-1].get("reasoning_content", "") + thought
        thought = ""
    if not any(message["role"] not in {"system", "developer"} for message in found):
        raise InvalidOption("input holds no message.", field="input")
    return found


def _build_message(item: InputItem, index: int) -> dict[str, Any]:
    field = f"input[{index}]"
    match item.type:
        case "function_call":
            function = {"name": item.name or "", "arguments": item.arguments or "{}"}
            call = {"id": item.call_id or "", "type": "function", "function": function}
            return {"role": "assistant", "content": None, "tool_calls": [call]}
        case "function_call_output":
            return {"role": "tool", "tool_call_id": item.call_id or "", "content": _join(item.output, field)}
    if item.role is None:
        raise InvalidOption(f"{field} has no role.", field=field)
    return {"role": item.role, "content": _join(item.content, field)}


def _join(content: str | Sequence[ContentPart] | None, field: str) -> str:
    if content is None:
        raise InvalidOption(f"{field} has no content.", field=field)
    if isinstance(content, str):
        return content
    for part in content:
        if part.type not in {"input_text", "output_text", "text"}:
            raise InvalidOption(f"{field} holds a part of type {part.type!r}; only text is understood.", field=field)
        if part.text is None:
            raise InvalidOption(f"A text part of {field} has no text.", field=field)
    return "".join(part.text or "" for part in content)


def _read_tool_choice(request: ResponsesRequest) -> Any:
    choice = request.tool_choice
    if not isinstance(choice, dict):  # OpenAI's answers have `auto` without tools, and clients send it back
        return choice if request.tools or choice not in {"auto", "none"} else None
    if choice.get("type", "function") != "function":
        return choice  # the chat says why not
    if not isinstance(choice.get("name"), str):
        raise InvalidOption("tool_choice names no function.", field="tool_choice")
    return {"type": "function", "function": {"name": choice["name"]}}
