"""Coded words: a text of made-up words whose counts fall with their rank."""

import random
from dataclasses import dataclass

from fovea_lab.ruler.samples.draft import Draft, Passage, PassageQuestion
from fovea_lab.ruler.samples.placement import fwe_counts


@dataclass(frozen=True)
class _CodedWords:
    words: tuple[str, ...]
    filler: int

    first = 100
    """Words under which the ranks asked for tell apart."""

    most = 1 << 24

    def build(self, units: int) -> Passage:
        counts = fwe_counts(units, len(self.words))
        text = [word for word, count in zip(self.words, counts, strict=True) for _ in range(count)]
        random.Random(self.filler).shuffle(text)
        intro = "In the coded text below some words occur more often than others, and dots are no words. "
        context = f"{intro}Find the three most frequently appeared coded words. {' '.join(text)}\n"
        question = (
            "Question: Do not provide any explanation. Ignore the dots. Which three coded words are the commonest in "
            "the text above?"
        )
        prefix = "Answer: The three commonest coded words in the text above are:"
        return Passage(context, (PassageQuestion(question, prefix, self.words[1:4]),))


def draft_coded_words(rng: random.Random, filler: int, length: int) -> Draft:
    """Draw the words; the commonest is written as dots."""
    vocabulary = max((length - 50) // 50, 5)
    words: list[str] = ["..."]
    while len(words) < vocabulary:
        word = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=6))
        if word not in words:
            words.append(word)
    return _CodedWords(tuple(words), filler)
