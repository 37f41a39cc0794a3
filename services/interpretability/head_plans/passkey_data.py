"""Passkey texts for training Duo's gates: passkeys hidden in prose, then asked for one by one.

Pure functions of a seed. Knows text and token ids; knows no model.
"""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from fovea.errors import InvalidOption
from shared.lm.niah_prompts import Codec, build_haystack

_WORDS = """
alpha bravo charlie delta echo foxtrot golf hotel india juliett kilo lima mike november oscar papa quebec romeo sierra
tango uniform victor whiskey x-ray yankee zulu
"""
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_BINS = 1000
"""Depths that passkeys may have, evenly between 5 and 95 percent of the prose."""

_LENGTH_MULTIPLE = 16
"""Lengths are rounded up to a multiple of so many tokens."""


@dataclass(frozen=True)
class PasskeyTexts:
    """Training texts: one per step, lengths drawn evenly.

    Attributes:
        codec: Tokenizer.
        lengths: Tokens that a text may have; each is rounded up to a multiple of 16.
        keys: Passkeys per text, at most 10.
        words: Words of a passkey.
        seed: Of everything.
    """

    codec: Codec
    lengths: tuple[int, ...]
    keys: int = 4
    words: int = 8
    seed: int = 0

    def length(self, step: int) -> int:
        """Return the length in tokens of the text of a step."""
        drawn = random.Random(f"{self.seed}/{step}/length").choice(self.lengths)
        return -(-drawn // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE

    def text(self, step: int) -> tuple[Tensor, Tensor]:
        """Return ids [N] and answer positions of a step."""
        seed = f"{self.seed}/{step}"
        return make_passkey_text(self.codec, self.length(step), seed=seed, keys=self.keys, words=self.words)


def make_passkey_text(
    codec: Codec, length: int, *, seed: str | int = 0, keys: int = 4, words: int = 8
) -> tuple[Tensor, Tensor]:
    """Make prose with passkeys at random depths, each named by its ordinal, then a question and an answer for each.

    Returns ids [length], exactly so many, and the positions of the answers' tokens, ascending. There are 1 to 10
    passkeys of `words` words. Raises InvalidOption if passkeys and questions alone are longer.
    """
    rng = random.Random(seed)
    secrets = [" ".join(rng.choices(_WORDS.split(), k=words)) for _ in range(keys)]
    sentences = [_ids(codec, f" The {_ORDINALS[i]} passkey is: {secret}.") for i, secret in enumerate(secrets)]
    questions = [
        (_ids(codec, f"\nQuestion: What is the {_ORDINALS[i]} passkey?\nAnswer:"), _ids(codec, f" {secret}"))
        for i, secret in enumerate(secrets)
    ]
    room = length - sum(map(len, sentences)) - sum(len(q) + len(a) for q, a in questions)
    if room < 1:
        detail = f"{keys} passkeys of {words} words and their questions take {length - room} tokens, not {length}."
        raise InvalidOption(detail, hint="Ask for longer texts, or for fewer passkeys or words.", field="lengths")
    prose = _ids(codec, build_haystack(room * 12, rng.randrange(2**32)))[:room]
    places = sorted(int(room * (0.05 + 0.9 * rng.randrange(_BINS) / _BINS)) for _ in sentences)
    ids: list[int] = []
    for i, sentence in enumerate(sentences):
        ids += [*prose[places[i - 1] if i else 0 : places[i]], *sentence]
    ids += prose[places[-1] :]
    answer: list[int] = []
    for question, reply in questions:
        ids += question
        answer += range(len(ids), len(ids) + len(reply))
        ids += reply
    return torch.tensor(ids), torch.tensor(answer)


def _ids(codec: Codec, text: str) -> list[int]:
    return codec.encode(text, special=False)
