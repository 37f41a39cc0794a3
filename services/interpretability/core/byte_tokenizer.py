"""The tokenizer of the tiny model: one token per byte, so that it has no file of its own."""

from __future__ import annotations

from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers

from shared.lm.tokenizer import Tokenizer

__all__ = ["DIGEST", "byte_tokenizer"]

DIGEST = "bytes-256/1"
"""Stands for the file that this tokenizer does not have."""


def byte_tokenizer() -> Tokenizer:
    """256 tokens, in the order of the byte-level alphabet; none of them is special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = Library(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    return Tokenizer(library)
