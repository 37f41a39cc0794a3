"""JSON of one tool call, read while it is written: `{"name": …, "arguments": {…}}`. Knows JSON; knows no tags."""

import json
import re

from services.llm_longctx.serving.tools.tool_parser import CallUpdate

_STRING = r'"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*"'
_HEAD = re.compile(rf'\s*\{{\s*"name"\s*:\s*({_STRING})\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{{)')


class JsonCall:
    """One call. Llama says `parameters` for `arguments`.

    Attributes:
        text: Text that was read of it.
        is_named: Whether its name was read, so that its arguments pass as they come.
        is_whole: Whether its last bracket was read.
        is_broken: Whether it does not begin as an object does.
    """

    def __init__(self, index: int) -> None:
        self._index = index
        self._depth, self._in_string, self._is_escaped = 0, False, False
        self._end: int | None = None  # where the arguments end
        self._sent = 0  # up to where they were passed on
        self.text = ""
        self.is_named = self.is_whole = self.is_broken = False

    @property
    def is_cut(self) -> bool:
        """Whether its arguments have begun and not ended."""
        return self.is_named and self._end is None

    def feed(self, text: str) -> tuple[list[CallUpdate], str]:
        """News of the call, and what follows it."""
        size = next((place + 1 for place, char in enumerate(text) if self._ends_with(char, place)), len(text))
        self.text += text[:size]
        updates: list[CallUpdate] = []
        if not self.is_named and (head := _HEAD.match(self.text)) is not None:
            self.is_named, self._sent = True, head.end()
            updates.append(CallUpdate(self._index, json.loads(head[1])))
        end = len(self.text) if self._end is None else self._end
        if self.is_named and end > self._sent:
            updates.append(CallUpdate(self._index, arguments=self.text[self._sent : end]))
            self._sent = end
        return updates, text[size:]

    def parse(self) -> list[CallUpdate]:
        """The whole call, where its parts came in another order; nothing where the text is not a call."""
        try:
            call = json.loads(self.text)
            name, arguments = call["name"], call.get("arguments", call.get("parameters", {}))
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            return []
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        is_call = isinstance(name, str) and (len(call) == 1 or "arguments" in call or "parameters" in call)
        return [CallUpdate(self._index, name, text)] if is_call else []

    def _ends_with(self, char: str, place: int) -> bool:
        """Whether the object, or what is none, ends with this character."""
        if self._in_string:
            self._in_string = self._is_escaped or char != '"'
            self._is_escaped = char == "\\" and not self._is_escaped
            return False
        if self._depth == 0 and char != "{":
            self.is_broken = self.is_broken or not char.isspace()
            return self.is_broken
        self._in_string = char == '"'
        self._depth += (char in "{[") - (char in "}]")
        if char in "}]" and self._depth == 1 and self._end is None:
            self._end = len(self.text) + place + 1
        self.is_whole = self._depth == 0
        return self.is_whole
