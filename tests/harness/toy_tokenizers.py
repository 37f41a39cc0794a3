"""Tokenizers of tests, which need no file: one token per byte, and one per word."""

from collections.abc import Sequence

from tokenizers import Tokenizer as Library
from tokenizers import models

from shared.lm.tokenizer import Tokenizer


class ByteTokenizer(Tokenizer):
    """One token per byte; its id is the byte. No token ends an answer."""

    def __init__(self) -> None:
        super().__init__(Library(models.WordLevel({f"<0x{i:02X}>": i for i in range(256)}, unk_token="<0x00>")))

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int], *, special: bool = True) -> str:
        return bytes(ids).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        return bytes([token])


class WordTokenizer(Tokenizer):
    """One token per word, with a space in front. No token ends an answer."""

    def __init__(self, words: str) -> None:
        self._words = words.split()
        super().__init__(Library(models.WordLevel({w: i for i, w in enumerate(self._words)}, unk_token=self._words[0])))

    def decode(self, ids: Sequence[int], *, special: bool = True) -> str:
        return " ".join(self._words[i] for i in ids)

    def token_bytes(self, token: int) -> bytes:
        return f" {self._words[token]}".encode()
