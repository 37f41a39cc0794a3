"""A task that nothing knows yet, and the model that does it."""

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar, Self

from pydantic import BaseModel, Field

from fovea.errors import FoveaError
from shared.registry import CallContext, Card, LoadContext, Paper, Servable


class CountWordsIn(BaseModel):
    """A text."""

    text: str = Field(min_length=1, max_length=10_000, description="Split at white space.")
    least: int = Field(1, ge=1, le=100, description="Rarer words are left out.")


class CountWordsOut(BaseModel):
    """How often each word stands in it."""

    model: str
    words: dict[str, int]


class ToyWordCounter(Servable[CountWordsIn, CountWordsOut]):
    """Counts words."""

    In: ClassVar[type[BaseModel]] = CountWordsIn
    Out: ClassVar[type[BaseModel]] = CountWordsOut
    card: ClassVar[Card] = Card(
        name="toy-word-counter", task="count-words", summary="Counts the words of a text.",
        paper=Paper(title="Words", venue="none", year=2026), licence="Apache-2.0",
        notes=("Nothing is trained, so there is no ONNX graph.",), example={"text": "one two one three"},
    )  # fmt: skip

    @classmethod
    def load(cls, context: LoadContext) -> Self:
        """Nothing to load."""
        return cls()

    def predict(self, batch: Sequence[CountWordsIn], run: CallContext) -> list[CountWordsOut | FoveaError]:
        """Count the words of each text."""
        answers: list[CountWordsOut | FoveaError] = []
        for request in batch:
            run.check()
            counts = Counter(request.text.split())
            kept = {word: count for word, count in sorted(counts.items()) if count >= request.least}
            answers.append(CountWordsOut(model=self.card.name, words=kept))
        return answers
