"""Tasks for circuit discovery: indirect object identification, coloured objects, and user pairs as JSON lines.

A case is a clean prompt, a counterfactual of equal length, and right and wrong next tokens. Cases of equal length form
one batch. Templates and names are our own. Knows text and tokens; knows no model.
"""

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, Field

from fovea.errors import InvalidOption, Malformed
from services.interpretability.core.studied_model import StudiedModel


@dataclass(frozen=True, slots=True)
class Case:
    """One prompt with its counterfactual.

    Attributes:
        clean, corrupt: Token ids of equal length.
        correct: The right next token.
        wrong: Wrong ones, at least one.
        kind: Order of names (`ABBA`, `BABA`).
        marks: Named positions in the clean prompt (`IO`, `S2`, …).
        text: The clean prompt.
    """

    clean: list[int]
    corrupt: list[int]
    correct: int
    wrong: list[int]
    kind: str = ""
    marks: dict[str, list[int]] = field(default_factory=dict)
    text: str = ""


@dataclass(frozen=True, slots=True)
class CaseBatch:
    """Cases of one length and one number of wrong answers."""

    cases: list[Case]

    @property
    def clean(self) -> list[list[int]]:
        """Clean prompts."""
        return [case.clean for case in self.cases]

    @property
    def corrupt(self) -> list[list[int]]:
        """Counterfactuals."""
        return [case.corrupt for case in self.cases]

    @property
    def answers(self) -> list[list[int]]:
        """Correct token, then the wrong ones."""
        return [[case.correct, *case.wrong] for case in self.cases]

    @property
    def tokens(self) -> int:
        """Tokens of all clean prompts."""
        return len(self.cases) * len(self.cases[0].clean)

    @property
    def facts(self) -> dict[str, Any]:
        """Facts that results on this batch depend on, as JSON."""
        return {"clean": self.clean, "corrupt": self.corrupt, "answers": self.answers}


def group_by_length(cases: Iterable[Case]) -> list[CaseBatch]:
    """Group cases by length, shortest first; their order within a batch is kept."""
    groups: dict[tuple[int, int], list[Case]] = {}
    for case in cases:
        groups.setdefault((len(case.clean), len(case.wrong)), []).append(case)
    return [CaseBatch(groups[key]) for key in sorted(groups)]


def split_batches(batches: Iterable[CaseBatch], token_bytes: int, most: int) -> list[CaseBatch]:
    """Cut batches so that none takes more than `most` bytes, of `token_bytes` a token; each has a case at least."""
    found = []
    for batch in batches:
        size = max(1, most // (token_bytes * len(batch.cases[0].clean)))
        found += [CaseBatch(batch.cases[i : i + size]) for i in range(0, len(batch.cases), size)]
    return found


_TEMPLATES = (
    "When {a} and {b} went to the {place}, {s} gave a {thing} to",
    "After {a} and {b} arrived at the {place}, {s} handed a {thing} to",
    "While {a} and {b} were walking through the {place}, {s} passed a {thing} to",
    "Then {a} and {b} had a long talk at the {place}, and {s} offered a {thing} to",
    "Yesterday {a} and {b} met at the {place}, where {s} sold a {thing} to",
    "Once {a} and {b} had left the {place}, {s} threw a {thing} to",
    "Because {a} and {b} liked the {place}, {s} brought a {thing} there for",
    "Friends {a} and {b} found a {thing} near the {place}, and {s} gave it to",
)
_NAMES = """
Mary John Tom Anna James Mark Kevin Luke Sarah Paul Peter Laura Simon Alice Robert David Emma Jack Kate Michael Daniel
Susan Linda George Henry Martin Rachel Jason Helen Andrew Steven Maria Frank Julia Adam Brian Lisa
"""
_PLACES = ("garden", "store", "school", "park", "station", "office", "beach", "market")
_THINGS = ("book", "ball", "drink", "letter", "ring", "key", "map", "coin")


def make_indirect_objects(subject: StudiedModel, count: int, seed: int = 0, counterfactual: str = "flip") -> list[Case]:
    """Make cases of indirect object identification; orders alternate (ABBA: the answer comes first).

    The counterfactual `flip` exchanges the roles of the two names; `abc` names three unrelated people. Raises
    InvalidOption if fewer than five of our names are one token.
    """
    names = [name for name in _NAMES.split() if len(subject.tokenizer.encode(f" {name}", special=False)) == 1]
    if len(names) < 5:
        detail = f"{subject.name}'s tokenizer knows {len(names)} of our names as one token; the task needs five."
        raise InvalidOption(detail, hint="Give pairs of your own in `pairs`.", field="task")
    rng, cases = random.Random(f"ioi/{seed}"), []
    for i in range(count):
        template, (io, s, *others) = _TEMPLATES[i // 2 % len(_TEMPLATES)], rng.sample(names, 5)
        where = {"place": rng.choice(_PLACES), "thing": rng.choice(_THINGS)}
        first, second = (io, s) if i % 2 == 0 else (s, io)
        text = template.format(a=first, b=second, s=s, **where)
        other = template.format(a=first, b=second, s=io, **where)
        if counterfactual == "abc":
            other = template.format(a=others[0], b=others[1], s=others[2], **where)
        cases.append(_ioi_case(subject, text, other, io, s, "ABBA" if i % 2 == 0 else "BABA"))
    return cases


def _ioi_case(subject: StudiedModel, text: str, other: str, io: str, s: str, kind: str) -> Case:
    clean, corrupt = subject.encode(text), subject.encode(other)
    (right,), (wrong,) = (subject.tokenizer.encode(f" {name}", special=False) for name in (io, s))
    where = [p for p, i in enumerate(clean) if i == wrong]
    marks = {"END": [len(clean) - 1]}
    if right in clean and len(where) == 2:
        marks |= {"IO": [clean.index(right)], "S1": where[:1], "S1+1": [where[0] + 1], "S2": where[1:]}
    return Case(clean, corrupt, right, [wrong], kind, marks, text)


_COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black")
_OBJECTS = "pencil notebook cup ball book bottle ring hat bag plate lamp clock shirt box phone toy pen"
_SURFACES, _VIEWS = ("table", "desk", "floor"), ("there is", "you see", "I see")


def make_coloured_objects(subject: StudiedModel, count: int, seed: int = 0) -> list[Case]:
    """Make cases of coloured objects: one solved example, then the colour of one of three objects; chance is 1/3.

    The counterfactual is the same text with another object in question. Raises InvalidOption if a colour is not one
    token.
    """
    token = {c: subject.tokenizer.encode(f" {c.title()}", special=False) for c in _COLOURS}
    if bad := [colour for colour, ids in token.items() if len(ids) != 1]:
        detail = f"{subject.name}'s tokenizer cuts the colour {bad[0]} in several tokens."
        raise InvalidOption(detail, hint="Give pairs of your own in `pairs`.", field="task")
    cases: list[Case] = []
    rng = random.Random(f"colours/{seed}")
    while len(cases) < count:
        shot, question = _draw_scene(rng), _draw_scene(rng)
        target, other = rng.sample(range(3), 2)
        solved = _describe_scene(shot, rng.randrange(3), solved=True)
        text, twin = (f"{solved}\n{_describe_scene(question, one)}" for one in (target, other))
        clean, corrupt = subject.encode(text), subject.encode(twin)
        if len(clean) != len(corrupt):  # an object of another number of tokens: draw again
            continue
        colours = [colour for colour, _ in question[2]]
        right = token[colours[target]][0]
        wrong = [token[colour][0] for place, colour in enumerate(colours) if place != target]
        others = [colour for colour in colours if colour != colours[target]]
        marks = {"END": [len(clean) - 1], "WRONG": _last_positions(subject, clean, others)}
        cases.append(Case(clean, corrupt, right, wrong, "", marks, text))
    return cases


_Scene = tuple[str, str, list[tuple[str, str]]]


def _draw_scene(rng: random.Random) -> _Scene:
    pairs = list(zip(rng.sample(_COLOURS, 3), rng.sample(_OBJECTS.split(), 3), strict=True))
    return rng.choice(_SURFACES), rng.choice(_VIEWS), pairs


def _describe_scene(scene: _Scene, target: int, *, solved: bool = False) -> str:
    surface, view, pairs = scene
    things = [f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {thing}" for colour, thing in pairs]
    colour, thing = pairs[target]
    answer = f" {colour.title()}" if solved else ""
    listed = f"{things[0]}, {things[1]}, and {things[2]}"
    return f"Q: On the {surface}, {view} {listed}. What color is the {thing}?\nA:{answer}"


def _last_positions(subject: StudiedModel, ids: Sequence[int], colours: Sequence[str]) -> list[int]:
    """Last position of each colour word, as it stands in the question."""
    positions = []
    for colour in colours:
        token = subject.tokenizer.encode(f" {colour}", special=False)
        if len(token) == 1 and token[0] in ids:
            positions.append(len(ids) - 1 - list(reversed(ids)).index(token[0]))
    return positions


class _PairLine(BaseModel, extra="forbid"):
    clean: str = Field(min_length=1)
    corrupt: str = Field(min_length=1)
    correct: str
    wrong: str | list[str]


def parse_pairs(subject: StudiedModel, lines: str) -> list[Case]:
    """Parse user pairs: JSON lines of `clean`, `corrupt`, `correct` and `wrong`, which may be a list of texts.

    Raises Malformed for another line, InvalidOption for prompts of different length, or answers that have no token or
    begin with the same one; both name the line.
    """
    cases = []
    for number, line in enumerate(lines.split("\n"), 1):
        if not line.strip():
            continue
        try:
            pair = _PairLine.model_validate(json.loads(line))
        except (ValueError, RecursionError) as error:
            detail = f"Line {number} of pairs is not an object of clean, corrupt, correct (a text each) and wrong."
            raise Malformed(detail, field="pairs") from error
        clean, corrupt = subject.encode(pair.clean, "pairs"), subject.encode(pair.corrupt, "pairs")
        if len(clean) != len(corrupt):
            lengths = f"clean has {len(clean)} tokens, corrupt {len(corrupt)}"
            detail = f"Line {number} of pairs: {lengths}; they must be equal."
            raise InvalidOption(detail, hint="Exchange words of as many tokens.", field="pairs")
        texts = [pair.correct, *([pair.wrong] if isinstance(pair.wrong, str) else pair.wrong)]
        right, *wrong = first_tokens(subject, texts, f"Line {number} of pairs: ", "pairs")
        cases.append(Case(clean, corrupt, right, wrong, "", {"END": [len(clean) - 1]}, pair.clean))
    return cases


def first_tokens(subject: StudiedModel, texts: Sequence[str], where: str = "", field: str = "wrong") -> list[int]:
    """First tokens of the right answer and of the wrong ones, which are all that counts.

    Raises InvalidOption, in `field`: there is no wrong answer, one has no token, or one begins as the right one does.
    """
    ids = [subject.tokenizer.encode(text, special=False)[:1] for text in texts]
    if len(ids) < 2 or [] in ids:
        raise InvalidOption(f"{where}an answer is missing or has no token.", field=field)
    right, *wrong = (one for (one,) in ids)
    if right in wrong:
        token = subject.tokenizer.token_text(right)
        detail = f"{where}a right and a wrong answer begin with the token {token!r}, and only first tokens count."
        raise InvalidOption(detail, hint="End the prompt with what they share.", field=field)
    return [right, *wrong]
