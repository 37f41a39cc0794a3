"""Drafts of RULER-form contexts: what is hidden and asked is drawn first, how much haystack surrounds it comes later.

One stream of random numbers draws needles, another one filler, so that a group has the same needles at every length.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from services.llm_longctx.evaluation.ruler.placement import DEPTHS, cwe_rule, fwe_counts, place
from services.llm_longctx.evaluation.ruler.task import Task
from services.llm_longctx.evaluation.ruler.words import draw_key, draw_name, draw_value, word_list
from shared.errors import InvalidOption

__all__ = ["Asked", "Built", "Draft", "draft_chains", "draft_coded_words", "draft_common_words", "draft_needles"]

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
HOPS = 4
COMMON = 10
"""Words that `cwe` asks for."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, how its answer begins, and what it should contain."""

    question: str
    prefix: str
    references: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Built:
    """A context with its questions, and at what percent its needles lie."""

    context: str
    asked: tuple[Asked, ...]
    depths: tuple[float, ...] = ()


class Draft(Protocol):
    """A context whose haystack has no size yet."""

    @property
    def first(self) -> int:
        """Least units of haystack."""
        ...

    @property
    def most(self) -> int:
        """Most units that there are."""
        ...

    def build(self, units: int) -> Built:
        """The context with so many units."""
        ...


def streams(seed: int, task: str, group: int) -> tuple[random.Random, int]:
    """A generator for what is hidden, and a seed for filler."""
    digest = hashlib.sha256(f"ruler-form/1|{seed}|{task}|{group}".encode()).digest()
    return random.Random(digest[:16]), int.from_bytes(digest[16:])


class Prose(Protocol):
    """Haystack of sentences."""

    def take(self, words: int, seed: int) -> list[str]:
        """Sentences of so many words, from a drawn one on."""
        ...


# Needles.


@dataclass(frozen=True)
class _Needles:
    task: Task
    pairs: tuple[tuple[str, tuple[str, ...]], ...]  # key → values
    asked: tuple[tuple[str, ...], ...]  # keys of each question
    order: tuple[int, ...]  # in which needles are laid
    depths: tuple[float, ...]
    filler: int
    prose: Prose | None

    @property
    def first(self) -> int:
        return len(self.pairs) if self.task.haystack == "needles" else 1

    @property
    def most(self) -> int:
        return 1 << 24

    def build(self, units: int) -> Built:
        many = sum(len(self._answers(keys)) for keys in self.asked) > len(self.asked)
        noun = "uuid" if self.task.value == "uuid" else "number"
        what = f"Some special magic {noun}s are" if many else f"A special magic {noun} is"
        intro = f"{what} hidden in the text below. Memorise {'them' if many else 'it'}: you will be asked afterwards."
        needles = [self._needle(key, value) for key, values in self.pairs for value in values]
        laid = [needles[i] for i in self.order]
        context = f"{intro}\n{self._haystack(laid, units)}\n"
        return Built(context, tuple(map(self._question, self.asked)), self.depths)

    def _answers(self, keys: Sequence[str]) -> tuple[str, ...]:
        values = dict(self.pairs)
        return tuple(value for key in keys for value in values[key])

    def _needle(self, key: str, value: str) -> str:
        return f"One of the special magic {'uuids' if self.task.value == 'uuid' else 'numbers'} for {key} is: {value}."

    def _question(self, keys: tuple[str, ...]) -> Asked:
        answers, noun = self._answers(keys), "uuid" if self.task.value == "uuid" else "number"
        named = keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])}, and {keys[-1]}"
        if len(answers) == 1:
            about = f"the special magic {noun} for {named} mentioned in the provided text"
            return Asked(f"What is {about}?", f"The{about[3:]} is", answers)
        about = f"the special magic {noun}s for {named} mentioned in the provided text"
        return Asked(f"What are all {about}?", f"The{about[3:]} are", answers)

    def _haystack(self, needles: list[str], units: int) -> str:
        if self.task.haystack == "prose" and self.prose is not None:
            pieces = self.prose.take(units, self.filler)
            places, joint = place(len(pieces), self.depths), " "
        else:
            pieces, joint = self._lines(units - len(needles)), "\n"
            places = sorted(int(len(pieces) * depth / 100) for depth in self.depths)
        # Equal places keep the order of the needles.
        for at, needle in reversed(list(zip(places, needles, strict=True))):
            pieces.insert(at, needle)
        return joint.join(pieces)

    def _lines(self, count: int) -> list[str]:
        if self.task.haystack == "noise":
            return [NOISE] * (count + len(self.order))
        rng, lines = random.Random(self.filler), list[str]()
        taken = {text for pair in self.pairs for text in (pair[0], *pair[1])}
        while len(lines) < count:
            key, value = draw_key(rng, self.task.key), draw_value(rng, self.task.value)
            if not taken & {key, value}:
                taken |= {key, value}
                lines.append(self._needle(key, value))
        return lines


def draft_needles(task: Task, rng: random.Random, filler: int, questions: int, prose: Prose | None) -> Draft:
    """Draw keys, values, who is asked for, and depths."""
    wanted = max(task.keys, questions) if task.haystack == "needles" else task.keys
    taken: set[str] = set()

    def fresh(draw: object, kind: str) -> str:
        while (found := draw(rng, kind)) in taken:  # type: ignore[operator]
            pass
        taken.add(found)
        return str(found)

    pairs = tuple(
        (fresh(draw_key, task.key), tuple(fresh(draw_value, task.value) for _ in range(task.values)))
        for _ in range(wanted)
    )
    order = list(range(wanted * task.values))
    rng.shuffle(order)
    keys = [key for key, _ in pairs]
    rng.shuffle(keys)
    asked = tuple(tuple(keys[i * task.asked : (i + 1) * task.asked]) for i in range(questions))
    if task.haystack == "prose":
        depths = sorted(float(depth) for depth in rng.sample(DEPTHS, len(order)))
    else:
        depths = sorted(100 * rng.random() for _ in order)
    return _Needles(task, pairs, asked, tuple(order), tuple(depths), filler, prose)


# Variable chains.


@dataclass(frozen=True)
class _Chains:
    example: str
    names: tuple[str, ...]
    value: str
    places: tuple[float, ...]

    first = 1
    most = 1 << 24

    def build(self, units: int) -> Built:
        text = _lay_chain(self.names, self.value, self.places, units)
        asked = _ask_chain(self.names, self.value)
        return Built(f"{self.example}\n\n{_CHAIN_INTRO}\n\n{text}\n", (asked,), tuple(100 * x for x in self.places))


_CHAIN_INTRO = "Memorize and track the chain(s) of variable assignment hidden in the following text."


def _lay_chain(names: Sequence[str], value: str, places: Sequence[float], units: int) -> str:
    lines = [NOISE] * units
    given = [f"VAR {names[0]} = {value}", *(f"VAR {b} = VAR {a}" for a, b in pairwise(names))]
    for at, line in reversed([(int(units * share), line) for share, line in zip(places, given, strict=True)]):
        lines.insert(at, line)
    return "\n".join(lines)


def _ask_chain(names: Sequence[str], value: str) -> Asked:
    return Asked(
        f"Question: Find all variables that are assigned the value {value} in the text above.",
        f"Answer: According to the chain(s) of variable assignment in the text above, {len(names)} variables are "
        f"assigned the value {value}, they are:",
        tuple(names),
    )


def draft_chains(rng: random.Random) -> Draft:
    """Draw a chain, and a solved example of another one."""
    names, solved = _draw_names(rng, 5), _draw_names(rng, 3)
    value, other = (str(x) for x in rng.sample(range(10_000, 100_000), 2))
    places, shown = (sorted(rng.random() for _ in names) for _ in range(2))
    asked = _ask_chain(solved, other)
    text = _lay_chain(solved, other, shown, 5)
    example = f"{_CHAIN_INTRO}\n\n{text}\n{asked.question} {asked.prefix} {' '.join(solved)}"
    return _Chains(example, tuple(names), value, tuple(places))


def _draw_names(rng: random.Random, letters: int) -> list[str]:
    names: list[str] = []
    while len(names) <= HOPS:
        name = draw_name(rng, letters)
        if name not in names:
            names.append(name)
    return names


# Common words.

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

    def build(self, units: int) -> Built:
        rule = self.rule
        words = [*self.common] * rule["common"] + [*self.others[: units - COMMON]] * rule["uncommon"]
        random.Random(self.filler).shuffle(words)
        context = f"{self.example}\n\n{_LIST_INTRO}\n{_number(words)}\n"
        return Built(context, (Asked(_LIST_QUESTION, _LIST_PREFIX, self.common),))


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


# Coded words.


@dataclass(frozen=True)
class _CodedWords:
    words: tuple[str, ...]
    filler: int

    first = 100
    """Words under which the ranks asked for tell apart."""

    most = 1 << 24

    def build(self, units: int) -> Built:
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
        return Built(context, (Asked(question, prefix, self.words[1:4]),))


def draft_coded_words(rng: random.Random, filler: int, length: int) -> Draft:
    """Draw the words; the commonest is written as dots."""
    vocabulary = max((length - 50) // 50, 5)
    words: list[str] = ["..."]
    while len(words) < vocabulary:
        word = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=6))
        if word not in words:
            words.append(word)
    return _CodedWords(tuple(words), filler)


def check_questions(task: Task, questions: int) -> None:
    """Refuse more questions than a context can answer.

    Raises:
        InvalidOption: There are too many.
    """
    if not 1 <= questions <= task.max_questions:
        detail = f"{task.name} can ask {task.max_questions} question(s) of one context, not {questions}."
        raise InvalidOption(detail, field="questions")
