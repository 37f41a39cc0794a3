"""Byte tokenizer of the tiny model: one token per byte, so it needs no file of its own."""

from __future__ import annotations

from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers

from shared.lm.tokenizer import Tokenizer

BYTE_TOKENIZER_ID = "bytes-256/1"
"""Text that manifests hash in place of a tokenizer file."""


def byte_tokenizer() -> Tokenizer:
    """Build a tokenizer of 256 tokens in the order of the byte-level alphabet, none of them special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = Library(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    return Tokenizer(library)
