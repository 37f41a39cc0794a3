"""`/v1/judge/batches`: label many pairs, and get the labels. `Prefer: respond-async` makes it a job."""

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response
from pydantic import Field, ValidationError

from fovea.errors import InvalidOption
from services.relevance_judge.batches import batch_runner, pair_selection
from services.relevance_judge.batches.batch_store import BatchOut, BatchRow, BatchStore, Row, summarise_batch
from services.relevance_judge.batches.label_log import open_label_log
from services.relevance_judge.judge import Judge
from services.relevance_judge.parsing import trec
from services.relevance_judge.parsing.label_formats import MEDIA_TYPES, format_labels
from services.relevance_judge.routes.backends import get_judge
from services.relevance_judge.schemas import JudgeIn, StrictModel
from shared.registry import CallContext
from shared.serving.http.negotiation import choose
from shared.serving.http.openapi_routes import problems
from shared.serving.http.tenant import tenant_store
from shared.validation_errors import list_errors

router = APIRouter()

Form = Annotated[Literal["qrels", "jsonl", "csv"] | None, Query(description="Labels in this form, not the summary.")]

_FILES: dict[int | str, dict[str, Any]] = {
    200: {"content": {media: {"schema": {"type": "string"}} for media in MEDIA_TYPES.values()}}
}


class BatchIn(StrictModel):
    """Pairs to judge, by files' text, and how.

    The pairs are `pairs`; or the top of `runs` with texts from `topics` and `passages`; or, with neither, every topic
    with every passage. Pairs with a label in `qrels` are left out, so a run with its qrels fills their holes.
    """

    model: str | None = Field(None, description="The judge; left out, the default one.")
    options: dict[str, Any] = Field({}, description="Options of the judge, as for `POST /v1/judge`, without pairs.")
    topics: str = Field("", description="Lines `qid<TAB>text`, or JSON lines with `id` and `text`.")
    passages: str = Field("", description="JSON lines with `id` and `text`, or lines `docid<TAB>text`.")
    runs: str = Field("", description="Run lines, `qid Q0 docid rank score tag`, of one or more systems.")
    depth: int = Field(10, ge=1, le=1000, description="How far down each run.")
    qrels: str = Field("", description="Labels there are already, `qid 0 docid grade`; their pairs are left out.")
    pairs: str = Field("", description="JSON lines with `qid`, `docid`, `query` and `passage`.")
    budget_tokens: int | None = Field(None, ge=1, description="Start no more pairs once so many were spent.")
    budget_cost: float | None = Field(None, gt=0, description="The same in money; needs `options.price`.")
    per_minute: float | None = Field(None, gt=0, le=1e6, description="Most pairs started in a minute.")
    at_once: int = Field(4, ge=1, le=32, description="Most pairs judged at a time.")


@router.post("/batches", responses=problems(400, 404, 422, 503) | _FILES, response_model=BatchOut)
def label(request: Request, body: BatchIn, form: Form = None) -> Any:
    """Label pairs; what was labelled before, also by an attempt that broke off, is not judged again."""
    run: CallContext = request.scope["fovea.run"]
    answer_form = form or _form_by_accept(request)
    judge = get_judge(request, body.model)
    options = judge.resolve_calibrations(_options(judge, body.options), run.tenant)
    pairs = pair_selection.drop_labelled(_pairs(body), trec.parse_qrels(body.qrels))
    if not pairs:
        raise InvalidOption("No pair is left to judge.", hint="Give pairs; or topics, passages and perhaps runs.")
    plan = batch_runner.plan_batch(judge, options, pairs, options.llm or _default_model(judge, run))
    options, limits = options.model_copy(update={"llm": plan.llm}), _limits(body, options)
    store = _open_store(request)
    store.save(plan, time.time())
    with open_label_log(store.label_log(plan.settings), run) as log:
        reused = sum(log.has_verdict(key) for key in plan.keys)
        stopped = batch_runner.run_batch(plan, judge, options, log, limits, run)
    return _answer(store, plan.id, answer_form, reused=reused, stopped=stopped)


@router.get("/batches")
def list_batches(
    request: Request, limit: Annotated[int, Query(ge=1, le=500, description="Most batches.")] = 50
) -> list[BatchRow]:
    """List the caller's batches, newest first."""
    return _open_store(request).list_batches(limit)


@router.get("/batches/{name}", responses=problems(404) | _FILES, response_model=BatchOut)
def show_batch(request: Request, name: Annotated[str, Path(description="Id of the batch.")], form: Form = None) -> Any:
    """Show a batch, also while it runs: its summary, or with `form` its labels."""
    return _answer(_open_store(request), name, form or _form_by_accept(request))


def _answer(store: BatchStore, name: str, form: str | None, **more: Any) -> BatchOut | Response:
    manifest = store.load_manifest(name)
    rows: list[Row] = store.load_rows(manifest)
    if form is None:
        return summarise_batch(manifest, rows, **more)
    content = format_labels(rows, form).encode("utf8", "replace")
    return Response(content, media_type=MEDIA_TYPES[form], headers={"vary": "accept"})


def _form_by_accept(request: Request) -> str | None:
    media = choose(request.headers.get("accept"), ["application/json", *MEDIA_TYPES.values()])
    return next((form for form, offered in MEDIA_TYPES.items() if offered == media), None)


def _open_store(request: Request) -> BatchStore:
    return BatchStore(tenant_store(request))


def _options(judge: Judge, options: dict[str, Any]) -> JudgeIn:
    if misplaced := {"pairs", "query", "passages"} & set(options):
        raise InvalidOption("Pairs go next to the options, not into them.", field=f"options.{min(misplaced)}")
    try:
        return judge.In.model_validate({**options, "pairs": [{"query": "-", "passage": "-"}]})
    except ValidationError as error:
        first = list_errors(error)[0]
        raise InvalidOption(first["msg"], field=".".join(map(str, ("options", *first["loc"])))) from error


def _pairs(body: BatchIn) -> list[pair_selection.BatchPair]:
    if body.pairs.strip():
        return pair_selection.parse_pairs(body.pairs)
    topics, passages = pair_selection.parse_collection(body.topics, body.passages)
    if body.runs.strip():
        return pair_selection.pool_runs(trec.parse_runs(body.runs), body.depth, topics, passages)
    return pair_selection.cross_pairs(topics, passages)


def _default_model(judge: Judge, run: CallContext) -> str | None:
    """The endpoint's default by name, so that labels of another default are never taken for this one's."""
    return next(iter(judge.client.list_models(run)), None) if judge.asks_model else None


def _limits(body: BatchIn, options: JudgeIn) -> batch_runner.BatchLimits:
    tokens = [body.budget_tokens] if body.budget_tokens is not None else []
    if body.budget_cost is not None:
        if not options.price:
            detail = "A budget in money needs the price of a million tokens."
            raise InvalidOption(detail, hint="Set options.price, or give budget_tokens.", field="budget_cost")
        tokens.append(max(int(min(body.budget_cost / options.price * 1e6, 1e15)), 1))  # the quotient may be infinite
    return batch_runner.BatchLimits(min(tokens, default=None), body.per_minute, body.at_once)
