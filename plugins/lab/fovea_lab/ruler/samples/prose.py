"""Prose for haystacks, in sentences: Python's help topics, or a text of the user's."""

import random
import re
from dataclasses import dataclass
from functools import lru_cache

from fovea.errors import InvalidOption
from fovea_lab.text_corpus import load_library_prose

_END = re.compile(r"""(?<=[.!?])\s+(?=[A-Z"'“‘])""")


@dataclass(frozen=True)
class Sentences:
    """Sentences of a text, and how many words each has."""

    sentences: tuple[str, ...]

    def take(self, words: int, seed: int) -> list[str]:
        """Sentences of exactly so many words, from a drawn one on and round; a cut last one gets a full stop."""
        at, taken, pieces = random.Random(seed).randrange(len(self.sentences)), 0, []
        while taken < words:
            own = self.sentences[at].split(" ")
            whole = len(own) <= words - taken
            own = own[: words - taken]
            pieces.append(" ".join(own) if whole else f"{' '.join(own).rstrip('.,;:!?')}.")
            taken, at = taken + len(own), (at + 1) % len(self.sentences)
        return pieces


@lru_cache(maxsize=4)
def split_sentences(text: str | None) -> Sentences:
    """Sentences of a text; None: of Python's help topics. InvalidOption if there is none in it."""
    folded = " ".join((load_library_prose(1 << 30) if text is None else text).split())
    found = tuple(one for one in _END.split(folded) if one)
    if not found:
        raise InvalidOption("The text for haystacks is empty.", field="text")
    return Sentences(found)
