"""Tool parser: reads calls out of the text of an answer while it is written, and says how a forced call is spelled.

Forms that models were trained on are subclasses, one file each in `parsers`. Knows text; knows no tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from fovea.api.tools import FunctionDefinition

SchemaRule = Callable[[Mapping[str, Any] | bool], str]
"""Makes the Lark expression of the JSON texts that meet a schema."""


@dataclass(frozen=True, slots=True)
class CallUpdate:
    """News of one call.

    Attributes:
        index: Which call of the answer.
        name: The function, when the call begins.
        arguments: The next piece of its arguments, JSON text.
    """

    index: int
    name: str | None = None
    arguments: str = ""


class ToolParser(ABC):
    """Reads one answer.

    Class attributes:
        name: Name of the form.
        last_sign: The last character of what opens a call.
        is_first: Whether a call stands at the beginning of an answer, or behind another call, only.
        rules: Rules in Lark that `call_rule` refers to.

    Attributes:
        num_calls: Calls that were read so far.
        is_last_cut: Whether the answer is over before the arguments of its last call are.
    """

    name: ClassVar[str]
    last_sign: ClassVar[str]
    is_first: ClassVar[bool] = False
    rules: ClassVar[tuple[str, ...]] = ()

    def __init__(self, functions: Sequence[FunctionDefinition]) -> None:
        """Read an answer that may call these functions."""
        self.functions = {function.name: function for function in functions}
        self.num_calls, self.is_last_cut = 0, False
        self._text = ""  # what was not read yet

    @classmethod
    @abstractmethod
    def detects(cls, template: str) -> bool:
        """Whether a chat template teaches this form."""

    @classmethod
    @abstractmethod
    def write_call(cls, name: str, arguments: str) -> str:
        """A call as the model writes it; `arguments` is JSON text."""

    @classmethod
    @abstractmethod
    def call_rule(cls, function: FunctionDefinition, to_rule: SchemaRule) -> str:
        """A Lark expression of all valid calls of a function."""

    @classmethod
    @abstractmethod
    def find_opening(cls, text: str, names: Collection[str]) -> tuple[str, str] | None:
        """Where text has begun a call of one of these functions: its opening as in `call_rule`, and what follows it."""

    @classmethod
    @abstractmethod
    def may_open(cls, text: str) -> bool:
        """Whether text may be about to begin a call."""

    @property
    @abstractmethod
    def is_calling(self) -> bool:
        """Whether the text that was read ends inside a call."""

    @abstractmethod
    def feed(self, text: str) -> tuple[str, list[CallUpdate]]:
        """Additions of more text: text of the answer that is not a call, and news of calls."""

    @abstractmethod
    def end(self, *, is_cut: bool = False) -> tuple[str, list[CallUpdate]]:
        """The rest when the answer is over; a call that was cut off keeps its part.

        With `is_cut`, at the token limit, the beginning of a call is left out of the text.
        """


CallT = TypeVar("CallT")


class TaggedParser(ToolParser, Generic[CallT]):
    """A form whose calls stand between two tags, whatever is called; `CallT` is what is known of a call being read.

    Class attributes:
        opening: The first tag.
        closing: The last one.
    """

    opening: ClassVar[str] = "<tool_call>"
    closing: ClassVar[str] = "</tool_call>"
    last_sign: ClassVar[str] = ">"
    _call: CallT | None = None

    @classmethod
    def find_opening(cls, text: str, names: Collection[str]) -> tuple[str, str] | None:
        _, met, after = text.partition(cls.opening)
        return (met, after) if met else None

    @classmethod
    def may_open(cls, text: str) -> bool:
        return bool(split_at(text, cls.opening)[1])

    @property
    def is_calling(self) -> bool:
        return self._call is not None

    def feed(self, text: str) -> tuple[str, list[CallUpdate]]:
        self._text += text
        content, updates, goes_on = "", list[CallUpdate](), True
        while goes_on:
            if self._call is None:
                before, self._text, goes_on = split_at(self._text, self.opening)
                content += "" if self.num_calls and not before.strip() else before  # line breaks between calls
                self._call = self.begin_call() if goes_on else None
            else:
                more, goes_on = self.read_call(self._call, updates)
                content += more
        return content, updates

    @abstractmethod
    def begin_call(self) -> CallT:
        """Facts of a call whose opening tag was met."""

    @abstractmethod
    def read_call(self, call: CallT, updates: list[CallUpdate]) -> tuple[str, bool]:
        """Read on in a call: text that turns out to be none, and whether the closing tag was met."""


def split_at(text: str, mark: str) -> tuple[str, str, bool]:
    """Text before a mark, text that stays for later, and whether the mark was met.

    Where it was not, what stays is the end in which it may be beginning.
    """
    before, met, after = text.partition(mark)
    if met:
        return before, after, True
    kept = next((size for size in range(min(len(mark) - 1, len(text)), 0, -1) if mark.startswith(text[-size:])), 0)
    return text[: len(text) - kept], text[len(text) - kept :], False


def remove_half(text: str, mark: str) -> str:
    """Text that was cut off, without a mark at its end of which more than half is there."""
    before, begun, _ = split_at(text, mark)
    return before if 2 * len(begun) > len(mark) else text
