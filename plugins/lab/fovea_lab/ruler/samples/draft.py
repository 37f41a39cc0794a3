"""Drafts of RULER-form contexts: what is hidden and asked is drawn first, how much haystack surrounds it comes later.

One stream of random numbers draws needles, another one filler, so that a group has the same needles at every length.
"""

import hashlib
import random
from dataclasses import dataclass
from typing import Protocol

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
"""A unit of haystack without meaning."""


@dataclass(frozen=True, slots=True)
class PassageQuestion:
    """A question, how its answer begins, and what it should contain."""

    text: str
    prefix: str
    references: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Passage:
    """A context with its questions, and at what percent its needles lie."""

    context: str
    questions: tuple[PassageQuestion, ...]
    depths: tuple[float, ...] = ()


class Draft(Protocol):
    """A context whose haystack has no size yet."""

    @property
    def first(self) -> int:
        """Least units of haystack."""

    @property
    def most(self) -> int:
        """Most units that there are."""

    def build(self, units: int) -> Passage:
        """The context with so many units."""


def seed_streams(seed: int, task: str, group: int) -> tuple[random.Random, int]:
    """A generator for what is hidden, and a seed for filler."""
    digest = hashlib.sha256(f"ruler-form/1|{seed}|{task}|{group}".encode()).digest()
    return random.Random(digest[:16]), int.from_bytes(digest[16:])
