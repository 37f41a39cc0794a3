"""`/v1/judge/nuggets…` and `/v1/judge/support`: facts of an answer, and what supports it. Stores nothing."""

from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from fovea.errors import InvalidOption
from fovea_evaluation.answers import AnswerJudge, Nugget
from fovea_evaluation.metrics.answers import (
    Importance,
    NuggetScores,
    SentenceSupport,
    Support,
    SupportScores,
    score_support,
)
from services.relevance_judge.routes.backends import get_judge
from services.relevance_judge.schemas import MAX_TEXT_CHARS, StrictModel
from shared.registry import CallContext
from shared.serving.http.openapi_routes import problems

router = APIRouter(prefix="/v1/judge", tags=["judge"])

Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARS)]
Passages = Annotated[dict[str, Text], Field(min_length=1, max_length=200, description="Id → text.")]
How = Annotated[
    Literal["model", "similarity"],
    Field(description="Ask the language model, or compare by embeddings and words, which know no negation."),
]


class AnswerOptions(StrictModel):
    """Who judges."""

    query: Text
    how: How = "model"
    llm: str | None = Field(None, description="Language model at the endpoint; left out, its default.")
    seed: int | None = Field(None, ge=0, lt=2**31)


class NuggetsIn(AnswerOptions):
    """Passages to make facts of."""

    passages: Passages
    most: int = Field(20, ge=1, le=100, description="Facts to keep.")


class NuggetForm(BaseModel):
    """A fact."""

    text: Text
    importance: Importance = "vital"
    passages: list[str] = Field([], description="Ids of the passages that hold it.")


class NuggetsOut(BaseModel):
    """Facts, those nearest to the query first."""

    nuggets: list[NuggetForm]


class AssignIn(AnswerOptions):
    """An answer, and the facts to look for."""

    answer: Text
    nuggets: list[NuggetForm] = Field(min_length=1, max_length=100)


class AssignOut(NuggetScores):
    """How the answer holds each fact, and its scores; partial support counts one half."""

    supports: list[Support]


class SupportIn(AnswerOptions):
    """An answer that cites passages as `[id]`."""

    answer: Text
    passages: Passages


class SupportOut(SupportScores):
    """Support of an answer by its sources; partial support counts one half."""

    sentences: list[SentenceSupport]
    unknown: list[str] = Field(description="Ids that the answer cites and the request does not hold.")


@router.post("/nuggets", responses=problems(422, 503))
def create_nuggets(request: Request, body: NuggetsIn) -> NuggetsOut:
    """List the facts of passages that an answer to the query should hold."""
    found = _judge(request, body).create_nuggets(body.query, body.passages, _run(request), most=body.most)
    return NuggetsOut(nuggets=[NuggetForm(**{**vars(one), "passages": list(one.passages)}) for one in found])


@router.post("/nuggets/assign", responses=problems(422, 503))
def assign_nuggets(request: Request, body: AssignIn) -> AssignOut:
    """Find facts in an answer: nugget recall and precision."""
    nuggets = [Nugget(one.text, one.importance, tuple(one.passages)) for one in body.nuggets]
    supports, scores = _judge(request, body).assign_nuggets(body.query, body.answer, nuggets, _run(request))
    return AssignOut(supports=supports, **vars(scores))


@router.post("/support", responses=problems(422, 503))
def judge_support(request: Request, body: SupportIn) -> SupportOut:
    """Check each sentence of an answer against what it cites, and against all passages."""
    found = _judge(request, body).support_sentences(body.query, body.answer, body.passages, _run(request))
    if not found:
        raise InvalidOption("The answer holds no sentence.", field="answer")
    unknown = sorted({name for one in found for name in one.cited if name not in body.passages})
    return SupportOut(sentences=found, **vars(score_support(found)), unknown=unknown)


def _judge(request: Request, body: AnswerOptions) -> AnswerJudge:
    return AnswerJudge(get_judge(request, None).client, body.how, body.llm, body.seed)


def _run(request: Request) -> CallContext:
    run: CallContext = request.scope["fovea.run"]
    return run
