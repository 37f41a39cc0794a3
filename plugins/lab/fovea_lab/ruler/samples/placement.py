"""Sizes and places: how many units of haystack fit a length, and before which of them a needle stands."""

from collections.abc import Callable, Sequence

import torch

from fovea.errors import InvalidOption

DEPTHS = tuple(round(100 * i / 39) for i in range(40))
"""Percent of the haystack before a needle, 40 even ones."""

LONG = 4096
"""Tokens from which the word list of `cwe` follows its second rule."""


def place(units: int, depths: Sequence[float]) -> list[int]:
    """Before which of so many units needles at these depths stand, ascending."""
    return sorted(int(units * depth // 100) for depth in depths)


def cwe_rule(length: int) -> dict[str, int]:
    """How often words occur in the list of a prompt of so many tokens, and in its example."""
    if length < LONG:
        return {"common": 6, "uncommon": 1, "example_words": 20, "example_common": 3, "example_uncommon": 1}
    return {"common": 30, "uncommon": 3, "example_words": 40, "example_common": 10, "example_uncommon": 3}


def fwe_counts(words: int, vocabulary: int, alpha: float = 2.0) -> list[int]:
    """How often the word of each rank occurs among so many: ⌊words · rank⁻ᵃ / ζ(a)⌋."""
    zeta = float(torch.special.zeta(torch.tensor(alpha, dtype=torch.float64), 1.0))
    return [int(words * rank**-alpha / zeta) for rank in range(1, vocabulary + 1)]


def fit(measure: Callable[[int], int], most: int, *, first: int = 1) -> int:
    """The largest number of units, `first` or more, whose measure is at most `most`: by doubling, then bisection.

    The measure rises with the units, but for a few tokens that merge.

    Raises:
        InvalidOption: Even the first are too many.
    """
    if (least := measure(first)) > most:
        detail = f"The smallest prompt of this task has {least:,} tokens with its answer, and {most:,} are allowed."
        raise InvalidOption(detail, hint="Ask for a longer length.", field="lengths")
    low, high = first, max(2 * first, 1)
    while measure(high) <= most:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if measure(middle) <= most else (low, middle)
    return low
