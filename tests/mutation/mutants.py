"""Which mutants of a module are run: a sample at a fixed seed, as differences of source lines."""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import ndiff
from pathlib import Path

from tests.mutation.workspace import ROOT, import_path

SEED = 25


@dataclass(frozen=True)
class Mutant:
    """A change of one expression or statement: of the lines that `was` holds into those of `now`."""

    name: str
    file: str
    was: str
    now: str


def sample_mutants(files: Sequence[str], count: int) -> tuple[list[Mutant], int]:
    """Draw `count` mutants of these files at a fixed seed; also return how many there are."""
    everything = [mutant for file in files for mutant in find_mutants(file)]
    drawn = random.Random(SEED).sample(everything, min(count, len(everything)))
    return sorted(drawn, key=lambda mutant: mutant.name), len(everything)


def find_mutants(file: str) -> Iterator[Mutant]:
    """Every mutant of a file but those that only reword a message: no test should hold each word of a sentence."""
    from mutmut.mutation.file_mutation import mutate_file_contents
    from mutmut.utils.format_utils import get_mutant_name, mangled_name_from_mutant_name

    mutated = mutate_file_contents(file, (ROOT / file).read_text("utf8"))
    lines = mutated.code.splitlines()
    spans = mutated.line_span_by_function_name
    for name in mutated.mutant_names:
        original = f"{mangled_name_from_mutant_name(name)}__mutmut_orig"
        before, after = (
            [line.replace(each, "…") for line in lines[spans[each].start - 1 : spans[each].end]]
            for each in (original, name)
        )
        changes = [line for line in ndiff(before, after) if line[0] in "+-"]
        was, now = ("\n".join(line[2:].strip() for line in changes if line[0] == sign) for sign in "-+")
        if not rewords_message(was, now):
            yield Mutant(get_mutant_name(Path(import_path(file)), name), file, was, now)


def rewords_message(was: str, now: str) -> bool:
    """Whether only the letters of a string of several words differ: `XX…XX`, or another case."""
    changed = [text for text in re.findall('"([^"]*)"', was) if f'"{text}"' not in now]
    return was.lower() == now.replace("XX", "").lower() and any(" " in text for text in changed)
