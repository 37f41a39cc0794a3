"""Llama 3's form of tool calls: an answer that is nothing but JSON, several with `;` between them."""

import json
import re
from collections.abc import Collection
from typing import ClassVar

from fovea.api.tools import FunctionDefinition
from services.llm_longctx.serving.tools.json_call import JsonCall
from services.llm_longctx.serving.tools.tool_parser import CallUpdate, SchemaRule, ToolParser, remove_half

_TAG = "<|python_tag|>"
"""Stands before a call in some versions; where it is a special token it never shows."""

_NAME = rf'[ \n;]*(?:{re.escape(_TAG)})?\s*\{{\s*"name"\s*:\s*("[^"\\\x00-\x1f]*")'
_HEAD = re.compile(rf'{_NAME}\s*,\s*"(?:parameters|arguments)"\s*:')
_HALF_HEAD = re.compile(rf'{_NAME}\s*(?:,\s*(?:"\w*"?)?\s*)?')


class LlamaParser(ToolParser):
    """Reads `{"name": …, "parameters": …}`."""

    name: ClassVar[str] = "llama"
    last_sign: ClassVar[str] = ":"
    is_first: ClassVar[bool] = True
    _before = ""  # what stood before the call that is read
    _call: JsonCall | None = None
    _is_prose = False

    @classmethod
    def detects(cls, template: str) -> bool:
        return '"parameters": dictionary' in template or _TAG in template

    @classmethod
    def write_call(cls, name: str, arguments: str) -> str:
        return f'{{"name": {json.dumps(name)}, "parameters": {arguments}}}'

    @classmethod
    def call_rule(cls, function: FunctionDefinition, to_rule: SchemaRule) -> str:
        before = f'{{"name": {json.dumps(function.name)}, "parameters": '
        return f'{json.dumps(before)} {to_rule(function.arguments_schema)} "}}"'

    @classmethod
    def find_opening(cls, text: str, names: Collection[str]) -> tuple[str, str] | None:
        head = _HEAD.match(text)
        if head is None or (name := json.loads(head[1])) not in names:
            return None
        return f'{{"name": {json.dumps(name)}, "parameters": ', text[head.end() :].lstrip()

    @classmethod
    def may_open(cls, text: str) -> bool:
        return _HALF_HEAD.fullmatch(text) is not None

    @property
    def is_calling(self) -> bool:
        return self._call is not None and self._call.is_named

    def feed(self, text: str) -> tuple[str, list[CallUpdate]]:
        self._text += text
        content, updates = "", list[CallUpdate]()
        while self._text:
            if self._is_prose:
                content, self._text = content + self._text, ""
            elif self._call is None:
                if not self._begin():
                    break
            else:
                news, self._text = self._call.feed(self._text)
                updates += news
                content += self._finish(self._call, updates) if self._call.is_whole else ""
        return content, updates

    def end(self, *, is_cut: bool = False) -> tuple[str, list[CallUpdate]]:
        call, text, self._call, self._text = self._call, self._text, None, ""
        if call is None:
            left = remove_half(text, _TAG).removesuffix(_TAG) if is_cut and not self._is_prose else text
            return ("" if self.num_calls and not left.strip(" ;\n") else left), []
        if is_cut and self._is_begun("".join(call.text.split())):
            return "", []
        updates: list[CallUpdate] = []
        return self._finish(call, updates), updates

    def _is_begun(self, text: str) -> bool:
        """Whether text without spaces is what a call of a function begins with, and more than half of `{"name":`."""
        heads = [f'{{"name":"{name}","{word}":' for name in self.functions for word in ("parameters", "arguments")]
        return len(text) > 4 and any(head.startswith(text) for head in heads)

    def _begin(self) -> bool:
        """Whether it is clear what comes: a call, or an answer in prose."""
        start = self._text.lstrip(" \n;").removeprefix(_TAG)
        if not start or _TAG.startswith(start):
            return False
        if start.startswith("{"):
            self._before = self._text.removesuffix(start)
            self._call, self._text = JsonCall(self.num_calls), start
        else:
            self._is_prose = True
        return True

    def _finish(self, call: JsonCall, updates: list[CallUpdate]) -> str:
        """The call is over: its text, where it is none."""
        self._call, self.is_last_cut = None, call.is_cut
        if not call.is_named and not (parsed := call.parse()):
            self._is_prose = True
            return self._before + call.text
        updates += [] if call.is_named else parsed
        self.num_calls += 1
        return ""
