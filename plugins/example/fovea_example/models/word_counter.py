"""A model for a task that the core does not know: it counts words."""

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar, Self

from pydantic import BaseModel, Field

from fovea.errors import FoveaError
from shared.registry import CallContext, Card, LoadContext, Paper, Servable


class CountWordsIn(BaseModel):
    """A text."""

    text: str = Field(min_length=1, max_length=10_000, description="It is split at white space.")


class CountWordsOut(BaseModel):
    """How often each word occurs."""

    model: str
    words: dict[str, int]


class WordCounter(Servable[CountWordsIn, CountWordsOut]):
    """Counts words."""

    In: ClassVar[type[BaseModel]] = CountWordsIn
    Out: ClassVar[type[BaseModel]] = CountWordsOut
    card: ClassVar[Card] = Card(
        name="word-counter",
        task="count-words",
        summary="Counts the words of a text.",
        paper=Paper(title="None", venue="none", year=2026),
        licence="Apache-2.0",
        notes=("It has no weights, so there is no ONNX graph.",),
        example={"text": "one two one three"},
    )

    @classmethod
    def load(cls, context: LoadContext) -> Self:
        return cls()

    def predict(self, batch: Sequence[CountWordsIn], run: CallContext) -> list[CountWordsOut | FoveaError]:
        answers: list[CountWordsOut | FoveaError] = []
        for request in batch:
            run.check()
            answers.append(CountWordsOut(model=self.card.name, words=Counter(request.text.split())))
        return answers
