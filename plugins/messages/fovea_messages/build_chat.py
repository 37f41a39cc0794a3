"""From Anthropic's requests to chats: blocks become turns, tools become functions. Knows no HTTP and no model."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from fovea.api.text import ChatRequest
from fovea.errors import InvalidOption
from fovea_messages.wire import ContentBlock, Conversation, MessagesRequest, ToolChoice, ToolDefinition
from services.llm_longctx.api.chat_chunks import read_chat

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}

NAMES = {
    "reasoning_effort": "thinking",
    "response_format": "output_config.format",
    "chat_template": "model",
    "stop_token_ids": "stop_sequences",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    ".function.parameters": ".input_schema",
    ".function": "",
}
"""Names in chats of fields that these requests name otherwise."""


def find_names(request: Conversation) -> dict[str, str]:
    """`NAMES` for one request: how much is thought is said in one of two fields."""
    is_off = request.thinking is not None and request.thinking.type == "disabled"
    has_effort = request.output_config is not None and request.output_config.effort is not None
    return {**NAMES, "reasoning_effort": "output_config.effort"} if has_effort and not is_off else NAMES


def build_chat(request: Conversation) -> ChatRequest:
    """The chat that answers a request.

    Raises InvalidOption: it holds blocks or tools that only other servers understand.
    """
    turns = [*_read_system(request.system), *(one for turn in enumerate(request.messages) for one in _read_turn(*turn))]
    fields: dict[str, Any] = {
        "model": request.model,
        "messages": turns,
        "continue_final_message": turns[-1]["role"] == "assistant" and not turns[-1].get("tool_calls"),
        "tools": [_read_tool(tool, i) for i, tool in enumerate(request.tools or ())],
        "reasoning_effort": _read_effort(request),
        **_read_choice(request.tool_choice),
    }
    if request.output_config is not None and (form := request.output_config.format) is not None:
        schema = {"schema": form.schema_, "strict": True}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    if isinstance(request, MessagesRequest):
        fields |= {name: getattr(request, name) for name in ("max_tokens", "temperature", "top_k", "top_p", "longctx")}
        told = {"include_usage": True, "continuous_usage_stats": True}
        fields |= {"stop": request.stop_sequences, "stream": True, "stream_options": told}
    return read_chat(fields)


def _read_system(system: str | Sequence[ContentBlock] | None) -> Iterator[dict[str, Any]]:
    if system:
        yield {"role": "system", "content": system if isinstance(system, str) else _join(system, "system")}


def _read_turn(index: int, turn: Any) -> Iterator[dict[str, Any]]:
    """A turn as those of a chat: results of tools are turns of their own, before what else the user says."""
    if isinstance(turn.content, str):
        yield {"role": turn.role, "content": turn.content}
        return
    field = f"messages.{index}.content"
    by_type: dict[str, list[ContentBlock]] = {}
    for block in turn.content:
        by_type.setdefault(block.type, []).append(block)
    expected = {"text", "tool_result"} if turn.role == "user" else {"text", "tool_use", "thinking", "redacted_thinking"}
    if wrong := sorted(by_type.keys() - expected):
        known = ", ".join(sorted(expected))
        detail = f"{field} of the {turn.role} holds a block of type {wrong[0]!r}; only {known} are read."
        raise InvalidOption(detail, field=field)
    for result in by_type.get("tool_result", ()):
        content = result.content if isinstance(result.content, str) else _join(result.content or (), field)
        yield {"role": "tool", "tool_call_id": result.tool_use_id or "", "content": content}
    text, calls = _join(by_type.get("text", ()), field), by_type.get("tool_use", ())
    if turn.role == "user":
        if text or not by_type.get("tool_result"):
            yield {"role": "user", "content": text}
        return
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [
            {"id": call.id or "", "function": {"name": call.name or "", "arguments": json.dumps(call.input or {})}}
            for call in calls
        ]
    if thoughts := "".join(block.thinking or "" for block in by_type.get("thinking", ())):
        message["reasoning_content"] = thoughts
    yield message


def _join(blocks: Sequence[ContentBlock], field: str) -> str:
    for block in blocks:
        if block.type != "text":
            raise InvalidOption(f"{field} holds a block of type {block.type!r}; only text is read.", field=field)
        if block.text is None:
            raise InvalidOption(f"A text block of {field} has no text.", field=field)
    return "".join(block.text or "" for block in blocks)


def _read_tool(tool: ToolDefinition, index: int) -> dict[str, Any]:
    if tool.type not in {None, "custom"}:
        detail = f"tools.{index} is of type {tool.type!r}; only tools that the caller runs are served."
        raise InvalidOption(detail, hint="Describe it by name and input_schema.", field=f"tools.{index}.type")
    function = {"parameters": tool.input_schema, **tool.model_dump(include={"name", "description", "strict"})}
    return {"type": "function", "function": {name: value for name, value in function.items() if value is not None}}


def _read_choice(choice: ToolChoice | None) -> dict[str, Any]:
    if choice is None:
        return {}
    parallel = {"parallel_tool_calls": False} if choice.disable_parallel_tool_use else {}
    if choice.type != "tool":
        return {"tool_choice": _CHOICES[choice.type], **parallel}
    return {"tool_choice": {"type": "function", "function": {"name": choice.name or ""}}, **parallel}


def _read_effort(request: Conversation) -> str | None:
    """How much is thought: what `effort` says, unless `thinking` is off; else much where thoughts are asked for."""
    thinking = None if request.thinking is None else request.thinking.type
    if thinking == "disabled":
        return "none"
    effort = None if request.output_config is None else request.output_config.effort
    return effort or ("high" if thinking == "enabled" else None)
