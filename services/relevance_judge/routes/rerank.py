"""Reranking for search clients: `/v1/rerank` (Jina, Cohere), `/v2/rerank` (Cohere), `/v1/score` and others of vLLM.

The scorers are the judges, sentence embeddings and BM25. Knows HTTP and the host.
"""

import asyncio
from typing import Annotated, Any, Literal
from uuid import uuid4

from fastapi import APIRouter, Depends, Request
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from fovea.api.request_fields import check_fields
from fovea.errors import InvalidOption, NotFound
from services.relevance_judge.schemas import MAX_PAIRS, MAX_TEXT_CHARS, JudgeIn, JudgeOut, Pair
from services.relevance_judge.scorers import SCORERS, count_tokens, default_scorer, score_verdict
from shared.registry import CallContext
from shared.serving.host import Host
from shared.serving.http.openapi_routes import problems
from shared.serving.http.system_routes import host_of

router = APIRouter(tags=["rerank"])
_ROUTE: dict[str, Any] = {"responses": problems(404, 422, 503), "openapi_extra": {"x-error-form": "openai"}}

Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARS)]
HostDep = Annotated[Host, Depends(host_of)]


class RerankDocument(BaseModel):
    """A document as an object."""

    model_config = ConfigDict(extra="allow")

    text: Text


class RerankIn(BaseModel):
    """A query, and the documents to order by it."""

    model_config = ConfigDict(extra="allow")

    model: str | None = Field(None, description="A judge, `all-minilm-l6-v2` or `bm25`; left out, embeddings.")
    query: Text
    documents: list[Text | RerankDocument] = Field(min_length=1, max_length=MAX_PAIRS)
    top_n: int | None = Field(None, ge=1, description="How many to return.")
    return_documents: bool = Field(False, description="Return the texts, too.")
    llm: str | None = Field(None, description="Ours: the language model that a judge asks.")


class RankedDocument(BaseModel):
    """A document's place in the order."""

    index: int = Field(description="Its place in the request.")
    relevance_score: float = Field(description="0…1; scores of different scorers can't be compared.")
    document: RerankDocument | None = None


class RerankUsage(BaseModel):
    """Tokens read, where a model read them."""

    total_tokens: int


class RerankOut(BaseModel):
    """The documents, most relevant first."""

    id: str
    object: Literal["list"] = "list"
    model: str
    results: list[RankedDocument]
    usage: RerankUsage
    meta: dict[str, Any] = Field(description="Cohere's facts about the call.")
    warnings: list[str] | None = Field(None, description="Ours: fields that were ignored, a sentence each.")


class ScoreIn(BaseModel):
    """Pairs of texts: one with many, or each with its own."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    model: str | None = None
    text_1: Text | list[Text] = Field(validation_alias=AliasChoices("text_1", "queries", "data_1"))
    text_2: Text | list[Text] = Field(validation_alias=AliasChoices("text_2", "documents", "items", "data_2"))
    llm: str | None = None


class PairScore(BaseModel):
    """The score of one pair."""

    index: int
    object: Literal["score"] = "score"
    score: float


class ScoreOut(BaseModel):
    """Scores in the order of the pairs."""

    id: str
    object: Literal["list"] = "list"
    model: str
    data: list[PairScore]
    usage: RerankUsage
    warnings: list[str] | None = Field(None, description="Ours: fields that were ignored, a sentence each.")


@router.post("/v2/rerank", **_ROUTE, response_model_exclude_none=True)
@router.post("/rerank", **_ROUTE, response_model_exclude_none=True)
@router.post("/v1/rerank", **_ROUTE, response_model_exclude_none=True)
async def rerank(body: RerankIn, request: Request, host: HostDep) -> RerankOut:
    """Order documents by how relevant they are for a query."""
    warnings = check_fields(body)
    texts = [one if isinstance(one, str) else one.text for one in body.documents]
    name, scores, tokens = await _score(body.model, [(body.query, text) for text in texts], body.llm, request, host)
    order = sorted(range(len(texts)), key=lambda i: (-scores[i], i))[: body.top_n]
    shown = {i: RerankDocument(text=texts[i]) if body.return_documents else None for i in order}
    return RerankOut(
        id=f"rerank-{uuid4().hex}",
        model=name,
        results=[RankedDocument(index=i, relevance_score=scores[i], document=shown[i]) for i in order],
        usage=RerankUsage(total_tokens=tokens),
        meta={"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
        warnings=warnings or None,
    )


@router.post("/score", **_ROUTE, response_model_exclude_none=True)
@router.post("/v1/score", **_ROUTE, response_model_exclude_none=True)
async def score(body: ScoreIn, request: Request, host: HostDep) -> ScoreOut:
    """Score pairs of texts: one query with each document, or pair by pair."""
    warnings = check_fields(body)
    pairs = _pair(body)
    name, scores, tokens = await _score(body.model, pairs, body.llm, request, host)
    data = [PairScore(index=i, score=one) for i, one in enumerate(scores)]
    usage = RerankUsage(total_tokens=tokens)
    return ScoreOut(id=f"score-{uuid4().hex}", model=name, data=data, usage=usage, warnings=warnings or None)


def _pair(body: ScoreIn) -> list[tuple[str, str]]:
    second = [body.text_2] if isinstance(body.text_2, str) else body.text_2
    first = [body.text_1] * len(second) if isinstance(body.text_1, str) else body.text_1
    first = first * len(second) if len(first) == 1 else first
    if len(first) != len(second) or not 1 <= len(second) <= MAX_PAIRS:
        detail = f"{len(first)} and {len(second)} texts make no pairs; give one or as many, {MAX_PAIRS} at most."
        raise InvalidOption(detail, field="text_1")
    return list(zip(first, second, strict=True))


async def _score(
    model: str | None, pairs: list[tuple[str, str]], llm: str | None, request: Request, host: Host
) -> tuple[str, list[float], int]:
    """The scorer's name, its scores, and the tokens that a model read."""
    name = model or default_scorer()
    if name is not None and name in SCORERS:
        request.scope["fovea.model"] = name
        return name, *await asyncio.to_thread(_score_by, name, pairs, request.scope["fovea.run"])
    name = _resolve_judge(host, name)
    request.scope["fovea.model"] = name
    judged = JudgeIn(pairs=tuple(Pair(query=q, passage=p) for q, p in pairs), llm=llm, seed=0)
    wanted = host.servable(name).In.model_validate(judged.model_dump(exclude_unset=True))
    answer = JudgeOut.model_validate(await host.predict(name, wanted, request.scope["fovea.run"]))
    return name, [score_verdict(one) for one in answer.results], sum(one.tokens for one in answer.results)


def _score_by(name: str, pairs: list[tuple[str, str]], run: CallContext) -> tuple[list[float], int]:
    """Scores of pairs query by query, since some scorers look at all passages of one, and the tokens read."""
    scores = [0.0] * len(pairs)
    for query in dict.fromkeys(query for query, _ in pairs):
        places = [i for i, (first, _) in enumerate(pairs) if first == query]
        for place, found in zip(places, SCORERS[name](query, [pairs[i][1] for i in places], run.check), strict=True):
            scores[place] = found
    return scores, count_tokens(name, [*dict.fromkeys(query for query, _ in pairs), *(text for _, text in pairs)])


def _resolve_judge(host: Host, name: str | None) -> str:
    try:
        return host.resolve(name, "judge")
    except NotFound as error:
        hint = f"Scorers are {', '.join([*SCORERS, *host.tasks().get('judge', ())])}."
        raise NotFound(f"There is no scorer {name!r}.", hint=hint, field="model") from error
