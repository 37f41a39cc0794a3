"""Thoughts between `<think>` and `</think>` before the answer: Qwen 3, QwQ, DeepSeek-R1."""

from typing import ClassVar

from services.llm_longctx.serving.reasoning.reasoning_parser import ReasoningParser
from services.llm_longctx.serving.tools.tool_parser import remove_half, split_at

_OPEN, _CLOSE = "<think>", "</think>"


class ThinkTagParser(ReasoningParser):
    """Reads `<think>…</think>`; white space around the thoughts belongs to neither part."""

    name: ClassVar[str] = "think_tags"
    closing: ClassVar[str] = _CLOSE

    @classmethod
    def detects(cls, template: str) -> bool:
        return _CLOSE in template

    def __init__(self, prompt: str) -> None:
        self._is_thinking: bool | None = True if prompt.rstrip().endswith(_OPEN) else None  # None: not known yet
        self._text = ""  # what was not passed on yet
        self._is_begun = False  # whether the part that is read has had more than white space

    def feed(self, text: str) -> tuple[str, str]:
        self._text += text
        if self._is_thinking is None and not self._begin():
            return "", ""
        thought = ""
        if self._is_thinking:
            before, rest, is_closed = split_at(self._text, _CLOSE)
            shown = before.rstrip()
            thought = self._trim(shown)
            if not is_closed:
                self._text = before[len(shown) :] + rest
                return thought, ""
            self._is_thinking, self._is_begun, self._text = False, False, rest
        answer, self._text = self._trim(self._text), ""
        return thought, answer

    def end(self, *, is_cut: bool = False) -> tuple[str, str]:
        rest, self._text = self._text, ""
        if is_cut:
            rest = remove_half(rest, _CLOSE if self._is_thinking else _OPEN)
        return (rest.rstrip(), "") if self._is_thinking else ("", rest)

    def _begin(self) -> bool:
        """Whether it is clear if the answer begins with thoughts."""
        start = self._text.lstrip()
        if len(start) < len(_OPEN) and _OPEN.startswith(start):
            return False
        self._is_thinking = start.startswith(_OPEN)
        self._is_begun = not self._is_thinking
        if self._is_thinking:
            self._text = start.removeprefix(_OPEN)
        return True

    def _trim(self, text: str) -> str:
        """Text without the white space before the first word of its part."""
        found = text if self._is_begun else text.lstrip()
        self._is_begun = self._is_begun or bool(found)
        return found
