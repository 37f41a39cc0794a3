"""Qwen 3 Coder's form of tool calls: tags for the function and each parameter, values as they are."""

import json
import re
from typing import Any, ClassVar

from fovea.api.tools import FunctionDefinition
from services.llm_longctx.serving.tools.tool_parser import CallUpdate, SchemaRule, TaggedParser, remove_half, split_at

_OPEN, _CLOSE = TaggedParser.opening, TaggedParser.closing
_LINE = "\n"
_VALUES, _BOUNDS = {"const", "enum"}, {"format", "maxLength", "minLength", "pattern"}
_TEXT_RULE = "parameter_text"
_NAME = "<function="
_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>(.*?)(?:</function>\s*)?", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>(?=\s*(?:<parameter=|\Z))", re.DOTALL)


class QwenParser(TaggedParser[str]):
    """Reads `<tool_call><function=f><parameter=p>value</parameter></function></tool_call>`, a call at a time."""

    name: ClassVar[str] = "qwen"
    rules: ClassVar[tuple[str, ...]] = (rf"{_TEXT_RULE}[lazy]: /(.|\n)*\n<\/parameter>\n/",)

    @classmethod
    def detects(cls, template: str) -> bool:
        return _OPEN in template and "<function=" in template

    @classmethod
    def write_call(cls, name: str, arguments: str) -> str:
        values = {k: v if isinstance(v, str) else json.dumps(v) for k, v in json.loads(arguments).items()}
        inside = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in values.items())
        return f"{_OPEN}\n<function={name}>\n{inside}</function>\n{_CLOSE}"

    @classmethod
    def call_rule(cls, function: FunctionDefinition, to_rule: SchemaRule) -> str:
        schema = function.parameters or {}
        parts = [json.dumps(f"{_OPEN}\n<function={function.name}>\n")]
        for name, part in schema.get("properties", {}).items():
            whole = part if isinstance(part, bool) else {**part, "$defs": schema.get("$defs", {})}
            value = to_rule(whole) + ' "\\n</parameter>\\n"'
            rule = f"{json.dumps(f'<parameter={name}>{_LINE}')} {_TEXT_RULE if _is_text(part, function) else value}"
            parts.append(rule if name in schema.get("required", ()) else f"({rule})?")
        return " ".join([*parts, json.dumps(f"</function>\n{_CLOSE}")])

    def begin_call(self) -> str:
        return ""

    def read_call(self, call: str, updates: list[CallUpdate]) -> tuple[str, bool]:
        before, self._text, is_closed = split_at(self._text, _CLOSE)
        self._call = call + before
        return self._finish(self._call, updates, _CLOSE) if is_closed else "", is_closed

    def end(self, *, is_cut: bool = False) -> tuple[str, list[CallUpdate]]:
        updates: list[CallUpdate] = []
        text, self._text = self._text, ""
        if self._call is None:
            return (remove_half(text, _OPEN) if is_cut else text), []
        begun = (self._call + text).lstrip()
        is_text = not (is_cut and _NAME.startswith(begun[: len(_NAME)]) and ">" not in begun)
        self.is_last_cut = not self._call.rstrip().endswith("</function>")
        return (self._finish(self._call + text, updates, "") if is_text else ""), updates

    def _finish(self, call: str, updates: list[CallUpdate], closing: str) -> str:
        """The call is over: its text, where it is none."""
        self._call = None
        found = _FUNCTION.fullmatch(call)
        if found is None:
            return f"{_OPEN}{call}{closing}"
        arguments = {name: self._read(found[1], name, value) for name, value in _PARAMETER.findall(found[2])}
        updates.append(CallUpdate(self.num_calls, found[1], json.dumps(arguments, ensure_ascii=False)))
        self.num_calls += 1
        return ""

    def _read(self, function: str, name: str, value: str) -> Any:
        """A value by its type in the schema: text as it is, everything else as JSON where it is JSON."""
        known = self.functions.get(function)
        if known and _is_text((known.parameters or {}).get("properties", {}).get(name, {}), known):
            return value
        try:
            return json.loads(value)
        except ValueError:
            return value


def _is_text(schema: Any, function: FunctionDefinition) -> bool:
    """Whether a value stands as it is; as JSON where only so its keywords hold, by themselves or under `strict`."""
    bounds = _VALUES | _BOUNDS if function.strict else _VALUES
    return isinstance(schema, dict) and schema.get("type") == "string" and bounds.isdisjoint(schema)
