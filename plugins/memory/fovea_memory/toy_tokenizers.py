"""Tokenizers of the small trained models, which need no file: words of the recall task, and bytes.

Both know the character offsets of each token, so that a citation can point at it. Know text; know no model.
"""

import re
from collections.abc import Sequence

from tokenizers import Tokenizer as Library
from tokenizers import models

from fovea.errors import InvalidOption
from shared.lm.tokenizer import Tokenizer

FILLERS = "and the of to in on at by"
KEYS = "ant bat bee cat cow dog elk fox hen jay owl pig ram rat yak ewe"
VALUES = "red blue green pink gold grey black white brown amber azure coral ivory lilac olive teal"
LANDMARK = 41
"""The token that closes a block; it is nobody's word."""

_WORD = re.compile(r"\?|[^\s?]+")

_WORDS_TEMPLATE = "{% for m in messages %}{{ m.content }}{% if not loop.last %} {% endif %}{% endfor %}"
_BYTES_TEMPLATE = "{% for m in messages %}{{ m.content }}{% if not loop.last %}\n{% endif %}{% endfor %}"


class OffsetTokenizer(Tokenizer):
    """A tokenizer that knows the character offsets of its tokens."""

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Begin and end of each token of `encode(text)`, in characters."""
        raise NotImplementedError


class RecallTokenizer(OffsetTokenizer):
    """One token per word: 8 fillers, 16 keys, 16 values, the question mark, and a landmark that nobody can write.

    Messages of a conversation are joined by a space.
    """

    def __init__(self) -> None:
        words = [*FILLERS.split(), *KEYS.split(), *VALUES.split(), "?", "<landmark>"]
        self._words = words
        self._ids = {word: i for i, word in enumerate(words[:LANDMARK])}
        library = Library(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="?"))  # noqa: S106
        super().__init__(library, chat_template=_WORDS_TEMPLATE)
        self.special = frozenset({LANDMARK})

    def encode(self, text: str, *, special: bool = True) -> list[int]:  # there is no first token
        """Ids of a text.

        Raises:
            InvalidOption: It holds a word that the model does not know.
        """
        try:
            return [self._ids[word.lower()] for word in _WORD.findall(text)]
        except KeyError as error:
            detail = f"{error.args[0][:40]!r} is not a word of this model."
            hint = f"It knows fillers ({FILLERS}), keys ({KEYS}), values ({VALUES}) and the question mark."
            raise InvalidOption(detail, hint=hint) from error

    def offsets(self, text: str) -> list[tuple[int, int]]:
        return [found.span() for found in _WORD.finditer(text)]

    def decode(self, ids: Sequence[int], *, special: bool = True) -> str:
        return " ".join(self._words[i] for i in ids if special or i not in self.special)

    def token_bytes(self, token: int) -> bytes:
        return f" {self._words[token]}".encode() if token < len(self._words) else b""


class ByteTokenizer(OffsetTokenizer):
    """One token per byte of UTF-8; its id is the byte. Messages of a conversation are joined by a line break."""

    def __init__(self) -> None:
        library = Library(models.WordLevel({f"<0x{byte:02X}>": byte for byte in range(256)}, unk_token="<0x00>"))  # noqa: S106
        super().__init__(library, chat_template=_BYTES_TEMPLATE)

    def encode(self, text: str, *, special: bool = True) -> list[int]:  # there is no first token
        return list(text.encode())

    def offsets(self, text: str) -> list[tuple[int, int]]:
        return [(at, at + 1) for at, letter in enumerate(text) for _ in letter.encode()]

    def decode(self, ids: Sequence[int], *, special: bool = True) -> str:  # none is special
        return bytes(ids).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""
