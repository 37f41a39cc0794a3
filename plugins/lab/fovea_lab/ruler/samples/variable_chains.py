"""Variable chains: the assignments of a text, and who ends up with a value."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from fovea_lab.ruler.samples.draft import NOISE, Draft, Passage, PassageQuestion
from fovea_lab.ruler.samples.words import draw_name

HOPS = 4
"""Assignments behind the first of a chain."""

_ASSIGNMENT = re.compile(r"VAR\s+([A-Za-z_]\w*)\s*=\s*(?:VAR\s+([A-Za-z_]\w*)|(\d+)\b)")


def resolve(text: str, value: str) -> list[str]:
    """Variables that hold `value` in the end, in order of first assignment; assignments are carried out one by one."""
    held: dict[str, str | None] = {}
    for name, other, number in _ASSIGNMENT.findall(text):
        held[name] = held.get(other) if other else number
    return [name for name, number in held.items() if number == str(value)]


@dataclass(frozen=True)
class _Chains:
    example: str
    names: tuple[str, ...]
    value: str
    places: tuple[float, ...]

    first = 1
    most = 1 << 24

    def build(self, units: int) -> Passage:
        text = _lay_chain(self.names, self.value, self.places, units)
        question = _ask_chain(self.names, self.value)
        return Passage(
            f"{self.example}\n\n{_CHAIN_INTRO}\n\n{text}\n", (question,), tuple(100 * x for x in self.places)
        )


_CHAIN_INTRO = "Memorize and track the chain(s) of variable assignment hidden in the following text."


def _lay_chain(names: Sequence[str], value: str, places: Sequence[float], units: int) -> str:
    lines = [NOISE] * units
    given = [f"VAR {names[0]} = {value}", *(f"VAR {b} = VAR {a}" for a, b in pairwise(names))]
    for at, line in reversed([(int(units * share), line) for share, line in zip(places, given, strict=True)]):
        lines.insert(at, line)
    return "\n".join(lines)


def _ask_chain(names: Sequence[str], value: str) -> PassageQuestion:
    return PassageQuestion(
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
    question = _ask_chain(solved, other)
    text = _lay_chain(solved, other, shown, 5)
    example = f"{_CHAIN_INTRO}\n\n{text}\n{question.text} {question.prefix} {' '.join(solved)}"
    return _Chains(example, tuple(names), value, tuple(places))


def _draw_names(rng: random.Random, letters: int) -> list[str]:
    names: list[str] = []
    while len(names) <= HOPS:
        name = draw_name(rng, letters)
        if name not in names:
            names.append(name)
    return names
