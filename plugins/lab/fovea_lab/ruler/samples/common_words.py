"""Common words: a numbered list in which ten words occur more often than others."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from fovea_lab.ruler.samples.draft import Draft, Passage, PassageQuestion
from fovea_lab.ruler.samples.placement import cwe_rule
from fovea_lab.ruler.samples.words import word_list

COMMON = 10
"""Words that the answer lists."""

_LIST_INTRO = "Below is a numbered list of words. In it some occur more often than others; memorise those."
_LIST_QUESTION = "Question: What are the 10 most common words in the above list?"
_LIST_PREFIX = "Answer: The top 10 words that appear most often in the list are:"


@dataclass(frozen=True)
class _CommonWords:
    rule: dict[str, int]
    common: tuple[str, ...]
    others: tuple[str, ...]
    example: str
    filler: int

    first = COMMON + 1

    @property
    def most(self) -> int:
        return COMMON + len(self.others)

    def build(self, units: int) -> Passage:
        rule = self.rule
        words = [*self.common] * rule["common"] + [*self.others[: units - COMMON]] * rule["uncommon"]
        random.Random(self.filler).shuffle(words)
        context = f"{self.example}\n\n{_LIST_INTRO}\n{_number(words)}\n"
        return Passage(context, (PassageQuestion(_LIST_QUESTION, _LIST_PREFIX, self.common),))


def _number(words: Sequence[str]) -> str:
    return " ".join(f"{i}. {word}" for i, word in enumerate(words, 1))


def draft_common_words(rng: random.Random, filler: int, length: int) -> Draft:
    """Draw the common words and an example; no answer is part of another word of the prompt."""
    rule, fixed = cwe_rule(length), f"{_LIST_INTRO} {_LIST_QUESTION} {_LIST_PREFIX}".lower()
    words = list(word_list())
    rng.shuffle(words)
    common: list[str] = []
    for word in words:
        if word not in fixed and not any(word in other or other in word for other in common):
            common.append(word)
        if len(common) == COMMON:
            break
    rest = [word for word in words if not any(one in word for one in common)]
    shown, others = rest[: rule["example_words"]], rest[rule["example_words"] :]
    often = shown[:COMMON]
    text = often * rule["example_common"] + shown[COMMON:] * rule["example_uncommon"]
    rng.shuffle(text)
    random.Random(filler).shuffle(others)
    example = f"{_LIST_INTRO}\n{_number(text)}\n{_LIST_QUESTION} {_LIST_PREFIX} {_number(often)}"
    return _CommonWords(rule, tuple(common), tuple(others), example, filler)
