"""A judge: a prompted grade that is asked for with a template of its own."""

from typing import ClassVar

from services.relevance_judge.judge import EXAMPLE, NO_GRAPH, PAPER
from services.relevance_judge.judges.prompted_grade import PromptedGrade
from shared.registry import Card


class ToyStrictGrade(PromptedGrade):
    """Grades by a strict template."""

    default: ClassVar[str] = "toy-strict"
    card: ClassVar[Card] = Card(
        name="toy-strict", task="judge", paper=PAPER, licence="Apache-2.0", summary="Asks for a grade, strictly.",
        notes=(NO_GRAPH,), example=EXAMPLE,
    )  # fmt: skip
