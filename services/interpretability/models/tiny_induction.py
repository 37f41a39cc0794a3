"""The tiny model of the examples: a Llama over bytes, small enough to be part of the package, and its tokenizer."""

from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers

from shared.lm.builders import llama
from shared.lm.decoder import Decoder
from shared.lm.tokenizer import Tokenizer
from shared.registry import builder

BYTE_TOKENIZER_ID = "bytes-256/1"
"""Text that manifests hash in place of a tokenizer file."""


@builder("tiny-induction")
def tiny_induction(*, width: int = 64, layers: int = 3, heads: int = 4, kv_heads: int = 2) -> Decoder:
    """Build a Llama of 256 tokens and 2,048 positions, output tied to the embedding."""
    sizes = {"layers": layers, "kv_heads": kv_heads, "hidden": 2 * width, "vocab": 256, "positions": 2048}
    return llama(width=width, heads=heads, rope_theta=10_000.0, tied=True, **sizes)


def byte_tokenizer() -> Tokenizer:
    """Build a tokenizer of 256 tokens in the order of the byte-level alphabet, none of them special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = Library(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    return Tokenizer(library)
