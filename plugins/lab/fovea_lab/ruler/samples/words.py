"""Words of the RULER form: keys and word lists from the package wonderwords, numbers, uuids and variable names."""

import random
import re
import uuid
from functools import cache
from importlib import resources

_FORM = re.compile(r"[a-z]{3,12}")


@cache
def words_of(kind: str) -> tuple[str, ...]:
    """Words of one kind (`noun`, `adjective`, `verb`), sorted: lower-case, 3 to 12 letters, none profane."""
    assets = resources.files("wonderwords") / "assets"
    lists = {name: (assets / f"{name}list.txt").read_text("utf-8").split() for name in (kind, "profanity")}
    profane = set(lists["profanity"])
    return tuple(sorted({word for word in lists[kind] if _FORM.fullmatch(word)} - profane))


@cache
def word_list() -> tuple[str, ...]:
    """Nouns, adjectives and verbs together, sorted."""
    return tuple(sorted({*words_of("noun"), *words_of("adjective"), *words_of("verb")}))


def draw_key(rng: random.Random, kind: str) -> str:
    """A needle's key: `adjective-noun`, or a uuid."""
    return _draw_uuid(rng) if kind == "uuid" else f"{rng.choice(words_of('adjective'))}-{rng.choice(words_of('noun'))}"


def draw_value(rng: random.Random, kind: str) -> str:
    """A needle's value: seven digits, or a uuid of version 4."""
    return _draw_uuid(rng) if kind == "uuid" else str(rng.randrange(1_000_000, 10_000_000))


def draw_name(rng: random.Random, letters: int) -> str:
    """A variable's name in capitals; without vowels none is a word by chance."""
    return "".join(rng.choices("BCDFGHJKLMNPQRSTVWXZ", k=letters))


def _draw_uuid(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))
