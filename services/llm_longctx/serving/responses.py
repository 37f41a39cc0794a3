"""Responses protocol of OpenAI's API: its requests as chats, and the chunks of a chat as its events and items.

Knows both protocols' forms; knows nothing about HTTP or models.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import uuid4

from fovea.api.interventions import Captured
from fovea.api.responses import InputItem, ResponseObject, ResponsesRequest, ResponseUsage
from fovea.api.sampling import SamplingOptions
from fovea.api.text import ChatChunk, ChatRequest, ChunkChoice, ContentPart, Usage
from fovea.api.tools import ToolCallDelta
from fovea.errors import FoveaError, InvalidOption
from services.llm_longctx.serving.steering.capture_writer import join_captured

Event = dict[str, Any]
"""One event of a stream; its `type` names it."""

_SAME = (
    *SamplingOptions.model_fields,
    *(
        "model",
        "longctx",
        "interventions",
        "capture",
        "session_id",
        "user",
        "chat_template_kwargs",
        "include_reasoning",
    ),
)
"""Fields that chats call the same."""

_NAMES = {
    "response_format": "text.format", "max_completion_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
}  # fmt: skip
"""Fields that chats call otherwise."""


def list_input(request: ResponsesRequest) -> list[InputItem]:
    """The items of a request's input; a text is a message of the user."""
    return [InputItem(role="user", content=request.input)] if isinstance(request.input, str) else request.input


def build_chat_request(request: ResponsesRequest, earlier: Sequence[InputItem] = ()) -> ChatRequest:
    """The chat that answers a request after the items of an earlier conversation.

    Raises:
        InvalidOption: It has two memories, or holds what only other servers understand.
    """
    if request.previous_response_id is not None and request.session_id is not None:
        hint = "A session remembers by itself; leave previous_response_id out."
        raise InvalidOption("session_id and previous_response_id exclude each other.", hint=hint, field="session_id")
    fields: dict[str, Any] = {
        name: value for name, value in request if name in _SAME and name in request.model_fields_set
    }
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
    return ChatRequest.model_validate({name: value for name, value in fields.items() if value not in (None, [])})


def rename_fields(error: FoveaError) -> None:
    """Let an error about a chat speak of the fields of the request that the chat was built from."""
    for theirs, ours in _NAMES.items():
        error.detail = error.detail.replace(theirs, ours)
        error.field = error.field and error.field.replace(theirs, ours)
    if error.field == "messages":
        error.field = "input"


def _build_messages(request: ResponsesRequest, earlier: Sequence[InputItem]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if request.instructions:
        found.append({"role": "system", "content": request.instructions})
    # Items before this request's own have indices below 0, which no error ever names: they were answered before.
    for index, item in enumerate((*earlier, *list_input(request)), -len(earlier)):
        if (message := _build_message(item, index)) is not None:
            found.append(message)
    if not any(message["role"] not in {"system", "developer"} for message in found):
        raise InvalidOption("input holds no message.", field="input")
    return found


def _build_message(item: InputItem, index: int) -> dict[str, Any] | None:
    field = f"input[{index}]"
    match item.type:
        case "reasoning":
            return None
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
        if part.text is None or part.type not in {"input_text", "output_text", "text"}:
            raise InvalidOption(f"{field} holds a part of type {part.type!r}; only text is understood.", field=field)
    return "".join(part.text or "" for part in content)


def _read_tool_choice(request: ResponsesRequest) -> Any:
    choice = request.tool_choice
    if not isinstance(choice, dict):  # OpenAI's answers have `auto` without tools, and clients send it back
        return choice if request.tools or choice not in {"auto", "none"} else None
    if choice.get("type") != "function" or not isinstance(choice.get("name"), str):
        raise InvalidOption("tool_choice names no function.", field="tool_choice")
    return {"type": "function", "function": {"name": choice["name"]}}


class ResponseBuilder:
    """Turns the chunks of one chat into events, and keeps the answer that they make.

    Attributes:
        response: The answer so far.
    """

    def __init__(self, request: ResponsesRequest, warnings: Sequence[str] = ()) -> None:
        text = None if request.text is None else request.text.model_dump(by_alias=True, exclude_none=True)
        self.response = ResponseObject(
            id=f"resp_{uuid4().hex}",
            created_at=int(time.time()),
            status="in_progress",
            instructions=request.instructions,
            max_output_tokens=request.max_output_tokens,
            metadata=request.metadata or {},
            model=request.model or "",
            output=[],
            parallel_tool_calls=request.parallel_tool_calls is not False,
            previous_response_id=request.previous_response_id,
            store=request.store,
            temperature=request.temperature,
            text=text or {"format": {"type": "text"}},
            tool_choice=request.tool_choice or "auto",
            tools=[tool.model_dump() for tool in request.tools or ()],
            top_p=request.top_p,
            user=request.user,
            warnings=list(warnings) or None,
        )
        self._count = 0
        self._captured: list[Captured] = []
        self._open: dict[str, Any] | None = None  # the item that is being written

    def begin(self) -> Iterator[Event]:
        """The events before the first chunk."""
        yield self._event("response.created", response=self._dump())
        yield self._event("response.in_progress", response=self._dump())

    def feed(self, chunk: ChatChunk) -> Iterator[Event]:
        """The events of one more chunk."""
        self.response.model = chunk.model
        for choice in chunk.choices:
            yield from self._feed_choice(choice)
        if chunk.usage is not None:
            self.response.usage = _to_usage(chunk.usage)

    def end(self) -> Iterator[Event]:
        """The events after the last chunk; before the last of them the answer is whole."""
        yield from self._close()
        self.response.captured = join_captured(self._captured) or None
        if self.response.status == "in_progress":
            self.response.status = "completed"
        yield self._event(f"response.{self.response.status}", response=self._dump())

    def _feed_choice(self, choice: ChunkChoice) -> Iterator[Event]:
        if choice.captured:
            self._captured += choice.captured
            news = [one.model_dump(mode="json", exclude_none=True) for one in choice.captured]
            yield self._event("response.captured", captured=news)
        if choice.delta.reasoning_content:
            yield from self._add_thought(choice.delta.reasoning_content)
        if choice.delta.content:
            yield from self._add_text(choice.delta.content)
        for call in choice.delta.tool_calls or ():
            yield from self._add_call(call)
        if choice.finish_reason == "length":
            self.response.status = "incomplete"
            self.response.incomplete_details = {"reason": "max_output_tokens"}

    def _add_text(self, text: str) -> Iterator[Event]:
        item = self._open
        if item is None or item["type"] != "message":
            yield from self._close()
            part = {"type": "output_text", "text": "", "annotations": []}
            item = {"type": "message", "role": "assistant", "status": "in_progress", "content": [part]}
            yield from self._begin_item(item, "msg", empty={"content": []})
            yield self._item_event("response.content_part.added", part=dict(part))
        item["content"][0]["text"] += text
        yield self._item_event("response.output_text.delta", delta=text, logprobs=[])

    def _add_thought(self, text: str) -> Iterator[Event]:
        item = self._open
        if item is None or item["type"] != "reasoning":
            yield from self._close()
            item = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": ""}]}
            yield from self._begin_item(item | {"status": "in_progress"}, "rs", empty={"content": []})
        if self._open is not None:
            self._open["content"][0]["text"] += text
            yield self._item_event("response.reasoning_text.delta", delta=text)

    def _add_call(self, delta: ToolCallDelta) -> Iterator[Event]:
        if delta.id is not None:
            yield from self._close()
            item = {"type": "function_call", "call_id": delta.id, "name": delta.function.name, "arguments": ""}
            yield from self._begin_item(item | {"status": "in_progress"}, "fc")
        if self._open is not None and delta.function.arguments:
            self._open["arguments"] += delta.function.arguments
            yield self._item_event("response.function_call_arguments.delta", delta=delta.function.arguments)

    def _begin_item(self, item: dict[str, Any], prefix: str, empty: dict[str, Any] | None = None) -> Iterator[Event]:
        item["id"] = f"{prefix}_{uuid4().hex}"
        self._open = item
        self.response.output.append(item)
        yield self._event(
            "response.output_item.added", output_index=len(self.response.output) - 1, item=item | (empty or {})
        )

    def _close(self) -> Iterator[Event]:
        """End the item that is being written."""
        item = self._open
        if item is None:
            return
        if item["type"] == "reasoning":
            yield self._item_event("response.reasoning_text.done", text=item["content"][0]["text"])
        elif item["type"] == "message":
            part = item["content"][0]
            yield self._item_event("response.output_text.done", text=part["text"], logprobs=[])
            yield self._item_event("response.content_part.done", part=dict(part))
        else:
            done = {"arguments": item["arguments"], "name": item["name"]}
            yield self._item_event("response.function_call_arguments.done", **done)
        item["status"] = "incomplete" if self.response.status == "incomplete" else "completed"
        self._open = None
        yield self._event("response.output_item.done", output_index=len(self.response.output) - 1, item=dict(item))

    def _item_event(self, kind: str, **fields: Any) -> Event:
        """An event of the item that is being written."""
        item = self._open or {}
        place = {} if item.get("type") == "function_call" else {"content_index": 0}
        index = len(self.response.output) - 1
        return self._event(kind, item_id=item.get("id"), output_index=index, **place, **fields)

    def _event(self, kind: str, **fields: Any) -> Event:
        event = {"type": kind, "sequence_number": self._count, **fields}
        self._count += 1
        return event

    def _dump(self) -> dict[str, Any]:
        return self.response.model_dump(mode="json")


def _to_usage(usage: Usage) -> ResponseUsage:
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=usage.prompt_tokens_details,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        longctx=usage.longctx,
    )
