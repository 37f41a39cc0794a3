"""Needles in noise, prose or other needles: keys, values, which keys are queried, and depths."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from fovea_lab.ruler.samples.draft import NOISE, Draft, Passage, PassageQuestion
from fovea_lab.ruler.samples.placement import DEPTHS, place
from fovea_lab.ruler.samples.prose import Sentences
from fovea_lab.ruler.samples.task import Task
from fovea_lab.ruler.samples.words import draw_key, draw_value


@dataclass(frozen=True)
class _Needles:
    task: Task
    pairs: tuple[tuple[str, tuple[str, ...]], ...]  # key → values
    queried: tuple[tuple[str, ...], ...]  # keys of each question
    order: tuple[int, ...]  # in which needles are laid
    depths: tuple[float, ...]
    filler: int
    prose: Sentences | None

    @property
    def first(self) -> int:
        return len(self.pairs) if self.task.haystack == "needles" else 1

    @property
    def most(self) -> int:
        return 1 << 24

    def build(self, units: int) -> Passage:
        many = sum(len(self._answers(keys)) for keys in self.queried) > len(self.queried)
        noun = "uuid" if self.task.value == "uuid" else "number"
        what = f"Some special magic {noun}s are" if many else f"A special magic {noun} is"
        intro = f"{what} hidden in the text below. Memorise {'them' if many else 'it'}: you will be asked afterwards."
        needles = [self._needle(key, value) for key, values in self.pairs for value in values]
        laid = [needles[i] for i in self.order]
        context = f"{intro}\n{self._haystack(laid, units)}\n"
        return Passage(context, tuple(map(self._question, self.queried)), self.depths)

    def _answers(self, keys: Sequence[str]) -> tuple[str, ...]:
        values = dict(self.pairs)
        return tuple(value for key in keys for value in values[key])

    def _needle(self, key: str, value: str) -> str:
        return f"One of the special magic {'uuids' if self.task.value == 'uuid' else 'numbers'} for {key} is: {value}."

    def _question(self, keys: tuple[str, ...]) -> PassageQuestion:
        answers, noun = self._answers(keys), "uuid" if self.task.value == "uuid" else "number"
        named = keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])}, and {keys[-1]}"
        if len(answers) == 1:
            about = f"the special magic {noun} for {named} mentioned in the provided text"
            return PassageQuestion(f"What is {about}?", f"The{about[3:]} is", answers)
        about = f"the special magic {noun}s for {named} mentioned in the provided text"
        return PassageQuestion(f"What are all {about}?", f"The{about[3:]} are", answers)

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


def draft_needles(task: Task, rng: random.Random, filler: int, questions: int, prose: Sentences | None) -> Draft:
    """Draw keys, values, which keys are queried, and depths."""
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
    queried = tuple(tuple(keys[i * task.queries : (i + 1) * task.queries]) for i in range(questions))
    if task.haystack == "prose":
        depths = sorted(float(depth) for depth in rng.sample(DEPTHS, len(order)))
    else:
        depths = sorted(100 * rng.random() for _ in order)
    return _Needles(task, pairs, queried, tuple(order), tuple(depths), filler, prose)
