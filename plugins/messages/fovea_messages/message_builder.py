"""Message builder: turns the chunks of one chat into the events of a message, and keeps the message that they make."""

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

from fovea.api.text import ChatChunk, ChunkChoice, Usage
from fovea.api.tools import ToolCallDelta
from fovea_messages.wire import AnthropicMessage, MessageUsage, StopReason
from services.llm_longctx.api.chat_chunks import Event

_REASONS: dict[str, StopReason] = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class MessageBuilder:
    """Builds one message.

    Attributes:
        message: The message so far; the input of a tool_use is read when it is whole.
    """

    def __init__(self, warnings: list[str]) -> None:
        self.message = AnthropicMessage(
            id=f"msg_{uuid4().hex}", model="", content=[], usage=MessageUsage(), warnings=warnings or None
        )
        self._arguments = ""
        self._is_open = False  # whether the last block is being written
        self._index = -1  # of the last block that was opened: one that is left out of the message keeps its number

    def feed(self, chunk: ChatChunk) -> Iterator[Event]:
        """The events of one more chunk."""
        if chunk.usage is not None:
            self.message.usage = _to_usage(chunk.usage)
        if chunk.warnings and not chunk.choices:  # the last chunk: the one before it has them, too
            self.message.warnings = [*(self.message.warnings or ()), *chunk.warnings]
        if not self.message.model:
            self.message.model = chunk.model
            self.message.usage.output_tokens = 0  # the tokens of an answer come at its end
            yield {"type": "message_start", "message": self.message.model_dump(mode="json", exclude={"warnings"})}
        for choice in chunk.choices:
            yield from self._feed_choice(choice)

    def end(self) -> Iterator[Event]:
        """The events after the last chunk; before them the message is whole."""
        yield from self._close()
        delta = {"stop_reason": self.message.stop_reason, "stop_sequence": self.message.stop_sequence}
        extra = {"warnings": self.message.warnings} if self.message.warnings else {}
        yield {"type": "message_delta", "delta": delta, "usage": self.message.usage.model_dump(), **extra}
        yield {"type": "message_stop"}

    def _feed_choice(self, choice: ChunkChoice) -> Iterator[Event]:
        delta = choice.delta
        if delta.reasoning_content:
            yield from self._add("thinking", delta.reasoning_content, {"signature": ""})
        if delta.content:
            yield from self._add("text", delta.content, {})
        for call in delta.tool_calls or ():
            yield from self._add_call(call)
        if choice.finish_reason is not None:
            self.message.stop_reason = _REASONS[choice.finish_reason]
            if isinstance(choice.stop_reason, str) and choice.finish_reason == "stop":  # else calls are to be run
                self.message.stop_reason, self.message.stop_sequence = "stop_sequence", choice.stop_reason

    def _add(self, kind: str, text: str, more: dict[str, Any]) -> Iterator[Event]:
        """Add to a block whose text is in the field of its own type."""
        if not self._is_open or self.message.content[-1]["type"] != kind:
            yield from self._open({"type": kind, kind: "", **more})
        self.message.content[-1][kind] += text
        yield self._delta({"type": f"{kind}_delta", kind: text})

    def _add_call(self, call: ToolCallDelta) -> Iterator[Event]:
        if call.id is not None:
            block = {"type": "tool_use", "id": f"toolu_{call.id.removeprefix('call_')}", "name": call.function.name}
            yield from self._open({**block, "input": {}})
        if call.function.arguments:
            self._arguments += call.function.arguments
            yield self._delta({"type": "input_json_delta", "partial_json": call.function.arguments})

    def _open(self, block: dict[str, Any]) -> Iterator[Event]:
        yield from self._close()
        self.message.content.append(block)
        self._is_open = True
        self._index += 1
        yield {"type": "content_block_start", "index": self._index, "content_block": dict(block)}

    def _close(self) -> Iterator[Event]:
        if not self._is_open:
            return
        block = self.message.content[-1]
        if block["type"] == "tool_use":
            try:
                block["input"] = json.loads(self._arguments)
            except ValueError:  # cut off at the token limit: nobody is to run it without its arguments
                self.message.content.pop()
        self._is_open, self._arguments = False, ""
        yield {"type": "content_block_stop", "index": self._index}

    def _delta(self, delta: dict[str, Any]) -> Event:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}


def _to_usage(usage: Usage) -> MessageUsage:
    cached = usage.prompt_tokens_details.cached_tokens
    read, made = usage.prompt_tokens - cached, usage.completion_tokens
    return MessageUsage(input_tokens=read, output_tokens=made, cache_read_input_tokens=cached)
