"""`/v1/judge/batches`: label many pairs, and get the labels. Send it with `Prefer: respond-async` to have it as a job.

Knows HTTP, the forms of files and where the data folder is; how a batch is carried out is in `batch`.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import Field, ValidationError

from services.relevance_judge.batches import batch_runner, pair_selection
from services.relevance_judge.batches.batch_store import Archive, BatchOut, BatchRow, Row, summary
from services.relevance_judge.batches.label_log import opened
from services.relevance_judge.judge import Judge
from services.relevance_judge.parsing import trec
from services.relevance_judge.parsing.label_formats import FORMS, written
from services.relevance_judge.routes.strict_model import Given
from services.relevance_judge.schemas import JudgeIn
from shared.errors import InvalidOption
from shared.registry import CallContext
from shared.serving.http.negotiation import choose
from shared.serving.http.openapi_routes import problems

__all__ = ["router"]

router = APIRouter()

Form = Annotated[Literal["qrels", "jsonl", "csv"] | None, Query(description="Labels in this form, not the summary.")]

_FILES: dict[int | str, dict[str, Any]] = {
    200: {"content": {media: {"schema": {"type": "string"}} for media in FORMS.values()}}
}


class BatchIn(Given):
    """Pairs to judge, by files' text, and how.

    The pairs are `pairs`; or the top of `runs` with texts from `topics` and `passages`; or, with neither, every topic
    with every passage. Those with a label in `qrels` are left out, so a run with its qrels fills their holes.
    """

    model: str | None = Field(None, description="The judge; left out, the default one.")
    options: dict[str, Any] = Field({}, description="Of the judge, as for `POST /v1/judge`, without pairs.")
    topics: str = Field("", description="Lines `qid<TAB>text`, or JSON lines with `id` and `text`.")
    passages: str = Field("", description="JSON lines with `id` and `text`, or lines `docid<TAB>text`.")
    runs: str = Field("", description="Run lines, `qid Q0 docid rank score tag`, of one or more systems.")
    depth: int = Field(10, ge=1, le=1000, description="How far down each run.")
    qrels: str = Field("", description="Labels there are already, `qid 0 docid grade`; their pairs are left out.")
    pairs: str = Field("", description="JSON lines with `qid`, `docid`, `query` and `passage`.")
    budget_tokens: int | None = Field(None, ge=1, description="Stop asking when so many were spent.")
    budget_cost: float | None = Field(None, gt=0, description="The same in money; needs `options.price`.")
    per_minute: float | None = Field(None, gt=0, le=1e6, description="Pairs begun in a minute at most.")
    at_once: int = Field(4, ge=1, le=32, description="Pairs under way at most.")


@router.post("/batches", responses=problems(400, 404, 422, 503) | _FILES, response_model=BatchOut)
def label(request: Request, body: BatchIn, form: Form = None) -> Any:
    """Label pairs; what was labelled before, or in an attempt that broke off, is not asked for again."""
    run: CallContext = request.scope["fovea.run"]
    wanted = form or _by_accept(request)
    judge = _judge(request, body.model)
    asked = judge.settled(_options(judge, body.options))
    pairs = pair_selection.holes(_pairs(body), trec.parse_qrels(body.qrels))
    if not pairs:
        raise InvalidOption("No pair is left to judge.", hint="Give pairs; or topics, passages and perhaps runs.")
    plan = batch_runner.planned(judge, asked, pairs, asked.llm or _default_model(judge, run))
    asked = asked.model_copy(update={"llm": plan.llm})
    archive = _archive(request)
    archive.keep(plan, time.time())
    with opened(archive.journal(plan.settings), run) as journal:
        reused = sum(journal.judged(key) for key in plan.keys)
        stopped = batch_runner.carry_out(plan, judge, asked, journal, _bounds(body, asked), run)
    return _answer(archive, plan.id, wanted, reused=reused, stopped=stopped)


@router.get("/batches")
def list_batches(request: Request, limit: Annotated[int, Query(ge=1, le=500)] = 50) -> list[BatchRow]:
    """The caller's batches, newest first."""
    return _archive(request).listed(limit)


@router.get("/batches/{name}", responses=problems(404) | _FILES, response_model=BatchOut)
def show_batch(request: Request, name: str, form: Form = None) -> Any:
    """A batch as it stands, also while it runs: its summary, or with `form` its labels."""
    return _answer(_archive(request), name, form or _by_accept(request))


def _answer(archive: Archive, name: str, form: str | None, **more: Any) -> BatchOut | Response:
    manifest = archive.manifest(name)
    rows: list[Row] = archive.rows(manifest)
    if form is None:
        return summary(manifest, rows, **more)
    return Response(written(rows, form).encode("utf8", "replace"), media_type=FORMS[form], headers={"vary": "accept"})


def _by_accept(request: Request) -> str | None:
    media = choose(request.headers.get("accept"), ["application/json", *FORMS.values()])
    return next((form for form, offered in FORMS.items() if offered == media), None)


def _archive(request: Request) -> Archive:
    return Archive(request.app.state.settings.data_dir, request.headers.get("x-fovea-tenant", "local"))


def _judge(request: Request, name: str | None) -> Judge:
    found = request.app.state.host.servable(name, "judge")
    if not isinstance(found, Judge):
        raise InvalidOption(f"The model {name!r} is no judge.", field="model")
    return found


def _options(judge: Judge, options: dict[str, Any]) -> JudgeIn:
    """The judge's own request around a pair that stands for all."""
    if taken := {"pairs", "query", "passages"} & set(options):
        raise InvalidOption("Pairs go beside the options, not into them.", field=f"options.{min(taken)}")
    try:
        found = judge.In.model_validate({**options, "pairs": [{"query": "-", "passage": "-"}]})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InvalidOption(first["msg"], field=".".join(map(str, ("options", *first["loc"])))) from error
    assert isinstance(found, JudgeIn)  # noqa: S101  # every judge's request is one
    return found


def _pairs(body: BatchIn) -> list[pair_selection.Asked]:
    if body.pairs.strip():
        return pair_selection.listed(body.pairs)
    topics, passages = (
        pair_selection.read_texts(body.topics, "topics"),
        pair_selection.read_texts(body.passages, "passages"),
    )
    if body.runs.strip():
        return pair_selection.pooled(trec.parse_runs(body.runs), body.depth, topics, passages)
    return pair_selection.crossed(topics, passages)


def _default_model(judge: Judge, run: CallContext) -> str | None:
    """The endpoint's default by name, so that labels of another default are never taken for this one's."""
    return next(iter(judge.endpoint.models(run)), None)


def _bounds(body: BatchIn, asked: JudgeIn) -> batch_runner.Bounds:
    tokens = [body.budget_tokens] if body.budget_tokens is not None else []
    if body.budget_cost is not None:
        if not asked.price:
            detail = "A budget in money needs the price of a million tokens."
            raise InvalidOption(detail, hint="Set options.price, or give budget_tokens.", field="budget_cost")
        tokens.append(max(int(body.budget_cost / asked.price * 1e6), 1))
    return batch_runner.Bounds(min(tokens, default=None), body.per_minute, body.at_once)
