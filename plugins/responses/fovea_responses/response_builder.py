"""Response builder: turns the chunks of one chat into events, and keeps the response that they make."""

import time
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import uuid4

from fovea.api.interventions import Captured
from fovea.api.text import ChatChunk, ChunkChoice, Usage
from fovea.api.tools import ToolCallDelta
from fovea.errors import FoveaError
from fovea_responses.wire import ResponseObject, ResponsesRequest, ResponseUsage
from services.llm_longctx.api.chat_chunks import Event
from services.llm_longctx.serving.protocol import join_captured


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

    def feed(self, chunk: ChatChunk) -> Iterator[Event]:
        """The events of one more chunk."""
        self.response.model = chunk.model
        if self._count == 0:
            yield self._event("response.created", response=self._dump())
            yield self._event("response.in_progress", response=self._dump())
        for choice in chunk.choices:
            yield from self._feed_choice(choice)
        if chunk.usage is not None:
            self.response.usage = _to_usage(chunk.usage)
        if chunk.warnings and not chunk.choices:  # the last chunk: the one before it has them, too
            self.response.warnings = [*(self.response.warnings or ()), *chunk.warnings]

    def end(self) -> Iterator[Event]:
        """The events after the last chunk; before the last of them the answer is whole."""
        yield from self._close()
        self.response.captured = join_captured(self._captured) or None
        if self.response.status == "in_progress":
            self.response.status = "completed"
        yield self._event(f"response.{self.response.status}", response=self._dump())

    def fail(self, error: FoveaError) -> Event:
        """The last event of an answer that an error ends."""
        return self._event("error", code=error.code, message=error.detail, param=error.field)

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
