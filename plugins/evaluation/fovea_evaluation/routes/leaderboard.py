"""`/v1/judge/leaderboard`: compare judges, by labels that are sent, or stored, or of the mini-collection."""

from functools import cache
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import Field

from fovea.errors import InvalidOption
from fovea_evaluation.metrics.leaderboard import Leaderboard, LeaderboardEntry, Sort, build_leaderboard
from fovea_evaluation.metrics.rankings import check_queries
from fovea_evaluation.routes.options import Measure, RelevanceLevel, Seed
from services.relevance_judge.parsing import trec
from services.relevance_judge.parsing.label_formats import parse_labels
from services.relevance_judge.schemas import StrictModel
from services.relevance_judge.storage.mini_collection import load_mini_collection
from services.relevance_judge.storage.versioned_store import VersionedStore
from shared.serving.http.openapi_routes import problems
from shared.serving.http.tenant import tenant_store

router = APIRouter(prefix="/v1/judge", tags=["judge"])

MINI = "mini"


class JudgeLabels(StrictModel):
    """One judge's labels."""

    judge: str = Field(min_length=1, max_length=120, description="Its name in the table.")
    template: str | None = Field(None, description="The template it used.")
    labels: str = Field(description="Qrels lines, or JSON lines as batches write them, which state cost and time too.")


class LeaderboardIn(StrictModel):
    """A reference, the judges to measure against it, and the systems to rank."""

    name: str | None = Field(None, description="Store the table under this name, as the next version.")
    reference: str = Field(description="Qrels lines.")
    judges: list[JudgeLabels] = Field(min_length=1, max_length=256)
    runs: str = Field("", description="Run lines of all systems; without them tau and rho are null.")
    measure: Measure = "ndcg_cut_10"
    relevance_level: RelevanceLevel = 1
    draws: int = Field(2000, ge=1, le=10_000, description="Bootstrap samples of queries.")
    seed: Seed = 0
    sort: Sort = Field("kappa", description="The column to sort by, best first.")


@router.post("/leaderboard", responses=problems(400, 422))
def compare(request: Request, body: LeaderboardIn) -> Leaderboard:
    """Measure judges against a reference; with a name, store the table."""
    if body.name == MINI:
        raise InvalidOption(f"{MINI!r} is the table that comes with the service.", field="name")
    entries = [
        LeaderboardEntry(judge=one.judge, template=one.template, labels=parse_labels(one.labels, f"judges[{place}]"))
        for place, one in enumerate(body.judges)
    ]
    reference, runs = trec.parse_reference(body.reference), trec.parse_runs(body.runs)
    check_queries(runs, reference)
    options = body.model_dump(include={"measure", "relevance_level", "draws", "seed", "sort"})
    table = build_leaderboard(reference, entries, runs, **options)
    if body.name is None:
        return table
    version = _open_store(request).add(body.name, table.model_dump(mode="json", exclude={"name", "version"}))
    return table.model_copy(update={"name": body.name, "version": version})


@router.get("/leaderboard", responses=problems(404))
def show(
    request: Request,
    name: Annotated[str, Query(description="Name of the stored table.")] = MINI,
    sort: Annotated[Sort, Query(description="The column, best first.")] = "kappa",
) -> Leaderboard:
    """Show a stored table, `name` or `name@version`; left out, the judges measured on the mini-collection."""
    if name == MINI:
        return _mini_leaderboard(sort)
    plain, version, stored = _open_store(request).get(name)
    return Leaderboard.model_validate({**stored, "name": plain, "version": version}).sort_by(sort)


@cache
def _mini_leaderboard(sort: Sort) -> Leaderboard:
    mini = load_mini_collection()
    entries = [
        LeaderboardEntry(judge=file.stem, labels=parse_labels(file.read_text("utf8"), file.name))
        for file in sorted((mini.folder / "judgements").glob("*.jsonl"))
    ]
    files = sorted((mini.folder / "runs").glob("*.trec"))
    runs = {tag: run for file in files for tag, run in trec.parse_runs(file.read_text("utf8"), file.name).items()}
    return build_leaderboard(mini.labels, entries, runs, sort=sort).model_copy(update={"name": MINI, "version": 1})


def _open_store(request: Request) -> VersionedStore:
    return VersionedStore(tenant_store(request).under("leaderboards"), "leaderboard")
