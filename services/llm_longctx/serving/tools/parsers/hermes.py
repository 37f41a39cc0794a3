"""Hermes' form of tool calls, also Qwen 2.5's and Qwen 3's: JSON between `<tool_call>` tags."""

import json
from typing import ClassVar

from fovea.api.tools import FunctionDefinition
from services.llm_longctx.serving.tools.json_call import JsonCall
from services.llm_longctx.serving.tools.tool_parser import CallUpdate, SchemaRule, TaggedParser, remove_half, split_at

_OPEN, _CLOSE = TaggedParser.opening, TaggedParser.closing


class HermesParser(TaggedParser[JsonCall]):
    """Reads `<tool_call>{"name": …, "arguments": …}</tool_call>`."""

    name: ClassVar[str] = "hermes"

    @classmethod
    def detects(cls, template: str) -> bool:
        return _OPEN in template and "<function=" not in template

    @classmethod
    def write_call(cls, name: str, arguments: str) -> str:
        return f'{_OPEN}\n{{"name": {json.dumps(name)}, "arguments": {arguments}}}\n{_CLOSE}'

    @classmethod
    def call_rule(cls, function: FunctionDefinition, to_rule: SchemaRule) -> str:
        before = f'{_OPEN}\n{{"name": {json.dumps(function.name)}, "arguments": '
        arguments = to_rule(function.arguments_schema)
        return f"{json.dumps(before)} {arguments} {json.dumps('}' + chr(10) + _CLOSE)}"

    def begin_call(self) -> JsonCall:
        return JsonCall(self.num_calls)

    def end(self, *, is_cut: bool = False) -> tuple[str, list[CallUpdate]]:
        call, text, self._call, self._text = self._call, self._text, None, ""
        if call is None:
            return (remove_half(text, _OPEN) if is_cut else text), []
        updates = [] if call.is_named else call.parse()
        self.num_calls += call.is_named or bool(updates)
        self.is_last_cut = call.is_cut
        is_text = not (call.is_named or updates or (is_cut and not (call.is_whole or call.is_broken)))
        return (f"{_OPEN}{call.text}{text}" if is_text else ""), updates

    def read_call(self, call: JsonCall, updates: list[CallUpdate]) -> tuple[str, bool]:
        if not (call.is_whole or call.is_broken):
            news, self._text = call.feed(self._text)
            updates += news
        if not (call.is_whole or call.is_broken):
            return "", False
        before, self._text, is_closed = split_at(self._text, _CLOSE)
        if call.is_broken:
            call.text += before
        if not is_closed:
            return "", False
        self._call = None
        if not call.is_named and not (parsed := call.parse()):
            return f"{_OPEN}{call.text}{_CLOSE}", True
        updates += [] if call.is_named else parsed
        self.num_calls += 1
        return "", True
