"""Order and length bias of a pairwise judge, from preferences that were asked in both orders."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, Field

from shared.lazy_module import LazyModule

stats = LazyModule("scipy.stats")


@dataclass(frozen=True)
class Preference:
    """A judge's preferences, asked in both orders.

    Attributes:
        forward: Probability that it prefers the first passage when that is shown first; `backward` when second.
        first_words, second_words: Lengths of the passages.
        label: 1 if people prefer the first, −1 the second, 0 neither, None unknown.
    """

    forward: float
    backward: float
    first_words: int
    second_words: int
    label: int | None = None

    @property
    def is_consistent(self) -> bool:
        """Whether the order of showing does not change the choice."""
        return (self.forward > 0.5) == (self.backward > 0.5) and 0.5 not in {self.forward, self.backward}

    @property
    def mean(self) -> float:
        """Probability of preferring the first passage, with the order's effect averaged out."""
        return (self.forward + self.backward) / 2


class Share(BaseModel):
    """A share of cases with its exact (Clopper–Pearson) 95 % interval, and the two-sided p against one half."""

    share: float
    interval: tuple[float, float]
    cases: int
    p: float


class OrderBias(BaseModel):
    """Biases of a pairwise judge; null where there is no case."""

    statement: str
    consistent: Share | None = Field(description="Comparisons that come out the same in both orders.")
    shown_first: Share | None = Field(description="Of the others: how often the passage shown first won.")
    longer: Share | None = Field(
        description="Of consistent ones of equal grade (all, if nobody labelled): how often the longer passage won."
    )
    accuracy: Share | None = Field(description="Agreement with people, averaged over both orders; ties are left out.")
    single_order_accuracy: Share | None = Field(description="The same if each is asked once, first passage first.")


def measure_order_bias(preferences: Sequence[Preference]) -> OrderBias:
    """Measure order and length bias over comparisons in both orders."""
    steady = [one for one in preferences if one.is_consistent]
    # With forward > 0.5 > backward the passage shown first won both times.
    flipped = [one for one in preferences if not one.is_consistent and one.forward != one.backward]
    labelled = any(one.label is not None for one in preferences)
    even = [one for one in steady if one.first_words != one.second_words and (one.label == 0 or not labelled)]
    first = _share([one.forward > one.backward for one in flipped])
    longer = _share([(one.mean > 0.5) == (one.first_words > one.second_words) for one in even])
    return OrderBias(
        consistent=_share([one.is_consistent for one in preferences]),
        shown_first=first,
        longer=longer,
        accuracy=_agreement([(one.mean, one.label) for one in preferences]),
        single_order_accuracy=_agreement([(one.forward, one.label) for one in preferences]),
        statement=_state(len(preferences), len(steady), first, longer),
    )


def _agreement(cases: Sequence[tuple[float, int | None]]) -> Share | None:
    """How often a probability of the first passage lies on the side of its label, where both take a side."""
    return _share([(first > 0.5) == (label > 0) for first, label in cases if label and first != 0.5])


def _share(cases: Sequence[bool]) -> Share | None:
    if not cases:
        return None
    hits = sum(cases)
    test = stats.binomtest(hits, len(cases))
    ends = test.proportion_ci()
    interval = float(ends.low), float(ends.high)
    return Share(share=hits / len(cases), interval=interval, cases=len(cases), p=float(test.pvalue))


def _state(asked: int, steady: int, first: Share | None, longer: Share | None) -> str:
    parts = [f"{steady} of {asked} comparisons come out the same in both orders."]
    if first is not None and first.p < 0.05:
        side = "first" if first.share > 0.5 else "second"
        parts.append(f"Where the order matters, the passage shown {side} wins ({first.share:.0%}, p {first.p:.2g}).")
    if longer is not None and longer.p < 0.05:
        side = "longer" if longer.share > 0.5 else "shorter"
        parts.append(f"It prefers the {side} passage ({longer.share:.0%} prefer the longer one, p {longer.p:.2g}).")
    if steady < asked:
        parts.append("Ask in both orders and average, as this report does.")
    return " ".join(parts)
