"""Sampling options, drawn tokens, and grammars that constrain an answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: Divides the logits; 0 always takes the likeliest token.
        top_p: The smallest set of likeliest tokens that holds this much probability.
        top_k: So many likeliest tokens; 0 means all.
        min_p: Tokens with at least this share of the likeliest one's probability.
        seed: Makes the draws repeatable, whatever else is in the batch; None draws afresh.
        presence_penalty: Taken once from the logit of each token that was produced.
        frequency_penalty: Taken for each time that it was produced.
        repetition_penalty: Divides positive, multiplies negative logits of tokens in prompt and answer.
        logit_bias: Added to logits, by token id.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """One token with its log-probability under the model (nats, before temperature and penalties), where asked for.

    Attributes:
        offset: Where it begins in the text of its answer, in characters, once somebody makes text of it.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    offset: int = 0

    @classmethod
    def of(cls, token: int, words: Sequence[float]) -> Self:
        """A token with its log-probability, those of the likeliest, and the ids of these, as `words` in this order."""
        half = len(words) // 2
        ids = [int(i) for i in words[1 + half :]]
        return cls(token, words[0], tuple(zip(ids, words[1 : 1 + half], strict=True)))


class Grammar(Protocol):
    """Constrains one answer; it remembers the answer so far."""

    def mask(self) -> Tensor | None:
        """Which tokens may come next: bool [V], at least one, stop tokens where the answer may be over; None for all.

        Raises FoveaError: none may.
        """
        ...

    def advance(self, token: int) -> None:
        """This token came."""
        ...

    @property
    def is_finished(self) -> bool:
        """Whether the answer is whole and nothing may follow."""
        ...
