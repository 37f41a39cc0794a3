"""JSON by construction: an automaton over bytes that lets through what can still become one object (RFC 8259).

Every prefix that passes can be finished, and nothing follows the object's end. Knows nothing about tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["JsonGrammar"]

DEEPEST = 32
"""Objects and arrays inside each other."""

LONGEST_SPACE = 24
"""White space in a row: a model that likes it would fill its answer with nothing else."""

_SPACE = frozenset(b" \t\n\r")
_ESCAPES = frozenset(b'"\\/bfnrt')
_HEX = frozenset(b"0123456789abcdefABCDEF")
_WORDS = {"t": b"rue", "f": b"alse", "n": b"ull"}

_WHOLE = frozenset({"zero", "whole", "fraction", "power"})
"""Places at which a number may end."""

_NUMBERS = _WHOLE | {"minus", "point", "e", "sign"}

_BOUNDS = {0xE0: (0xA0, 0xBF), 0xED: (0x80, 0x9F), 0xF0: (0x90, 0xBF), 0xF4: (0x80, 0x8F)}
"""First byte of a UTF-8 character → between which the second lies, where that is not 0x80 … 0xBF (RFC 3629)."""


@dataclass(frozen=True, slots=True)
class JsonGrammar:
    r"""State of the grammar after the text so far.

    Attributes:
        stack: What is open, outermost first: `{` and `[`.
        at: What may come: `object` (the outermost one), `value`, `first` (value or end of array), `key`, `name` (key
            or end of object), `colon`, `after` (comma or end), `end`; or inside something: `string`, `character`,
            `escape`, `unicode`, `word`, or one of a number's places.
        rest: Of a word, the bytes to come; of a `\u` escape, one byte per digit to come.
        more: Bytes to come of a character.
        low, high: Between which the next of them lies.
        key: Whether the string is a key.
        space: White space in a row so far.
    """

    stack: bytes = b""
    at: str = "object"
    rest: bytes = b""
    more: int = 0
    low: int = 0x80
    high: int = 0xBF
    key: bool = False
    space: int = 0

    @property
    def complete(self) -> bool:
        """Whether the object is closed."""
        return self.at == "end"

    @property
    def final(self) -> bool:
        """Whether nothing may follow."""
        return self.at == "end"

    def feed(self, byte: int) -> JsonGrammar | None:
        """The state after one more byte, or None where it may not come."""
        match self.at:
            case "string":
                return self._in_string(byte)
            case "character" | "escape" | "unicode" | "word":
                return self._inside(byte)
            case at if at in _NUMBERS:
                return self._in_number(byte)
        if byte in _SPACE:
            return replace(self, space=self.space + 1) if self.space < LONGEST_SPACE and self.at != "end" else None
        after = self._between(chr(byte))
        return None if after is None else replace(after, space=0)

    def _between(self, char: str) -> JsonGrammar | None:
        """Outside of strings, words and numbers."""
        if char in "]}" and self.at in {"first", "name", "after"}:
            opened = b"{" if char == "}" else b"["
            return self._close() if self.stack[-1:] == opened else None
        match self.at, char:
            case ("object", "{"):
                return self._open("{")
            case ("name" | "key", '"'):
                return replace(self, at="string", key=True)
            case ("colon", ":"):
                return replace(self, at="value")
            case ("after", ","):
                return replace(self, at="key" if self.stack.endswith(b"{") else "value")
        return self._value(char) if self.at in {"value", "first"} else None

    def _value(self, char: str) -> JsonGrammar | None:
        if char in "{[":
            return self._open(char)
        if char == '"':
            return replace(self, at="string", key=False)
        if char in _WORDS:
            return replace(self, at="word", rest=_WORDS[char])
        begun = {"-": "minus", "0": "zero"}.get(char) or ("whole" if char in "123456789" else None)
        return None if begun is None else replace(self, at=begun)

    def _open(self, bracket: str) -> JsonGrammar | None:
        inside = "name" if bracket == "{" else "first"
        return replace(self, stack=self.stack + bracket.encode(), at=inside) if len(self.stack) < DEEPEST else None

    def _close(self) -> JsonGrammar:
        return replace(self, stack=self.stack[:-1], at="after" if len(self.stack) > 1 else "end")

    def _in_string(self, byte: int) -> JsonGrammar | None:
        if byte == ord('"'):
            return replace(self, at="colon" if self.key else "after")
        if byte == ord("\\"):
            return replace(self, at="escape")
        if byte < 0x80:
            return self if byte >= 0x20 else None
        more = 1 if 0xC2 <= byte <= 0xDF else 2 if 0xE0 <= byte <= 0xEF else 3 if 0xF0 <= byte <= 0xF4 else 0
        low, high = _BOUNDS.get(byte, (0x80, 0xBF))
        return replace(self, at="character", more=more, low=low, high=high) if more else None

    def _inside(self, byte: int) -> JsonGrammar | None:
        """Inside a character, an escape or a word, where few bytes may come."""
        match self.at:
            case "character":
                after = replace(
                    self, at="character" if self.more > 1 else "string", more=self.more - 1, low=0x80, high=0xBF
                )
                return after if self.low <= byte <= self.high else None
            case "escape" if byte == ord("u"):
                return replace(self, at="unicode", rest=b"0000")
            case "escape":
                return replace(self, at="string") if byte in _ESCAPES else None
            case "unicode":
                fits, done = byte in _HEX, "string"
            case _:
                fits, done = byte == self.rest[0], "after"
        return replace(self, rest=self.rest[1:], at=self.at if len(self.rest) > 1 else done) if fits else None

    def _in_number(self, byte: int) -> JsonGrammar | None:
        if (place := _number(self.at, chr(byte))) is not None:
            return replace(self, at=place)
        return replace(self, at="after").feed(byte) if self.at in _WHOLE else None


def _number(at: str, char: str) -> str | None:
    """Where a number goes on with this character; None where it does not."""
    if char in "0123456789":
        if at == "minus":
            return "zero" if char == "0" else "whole"
        after = {"whole": "whole", "point": "fraction", "fraction": "fraction", "zero": None}
        return after.get(at, "power")
    if char == "." and at in {"zero", "whole"}:
        return "point"
    if char in "eE" and at in {"zero", "whole", "fraction"}:
        return "e"
    return "sign" if char in "+-" and at == "e" else None
