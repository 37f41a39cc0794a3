"""`/v1/judge/leaderboard`: compare judges, by labels that are sent, or stored, or of the mini-collection."""

from __future__ import annotations

from functools import cache
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from fovea.errors import InvalidOption
from services.relevance_judge.metrics.leaderboard import Leaderboard, LeaderboardEntry, Sort, build_leaderboard
from services.relevance_judge.parsing import trec
from services.relevance_judge.parsing.label_formats import parse_labels
from services.relevance_judge.schemas import StrictModel
from services.relevance_judge.storage.mini_collection import load_mini_collection, load_mini_judgements, load_mini_runs
from services.relevance_judge.storage.versioned_store import VersionedStore
from shared.serving.http.openapi_routes import problems
from shared.serving.http.tenant import tenant_store

router = APIRouter()

MINI = "mini"


class JudgeLabels(BaseModel):
    """One judge's labels."""

    model_config = ConfigDict(extra="forbid")

    judge: str = Field(min_length=1, max_length=120, description="Its name in the table.")
    template: str | None = Field(None, description="The template it used.")
    labels: str = Field(description="Qrels lines, or JSON lines as batches write them, which state cost and time too.")


class LeaderboardIn(StrictModel):
    """A reference, the judges to measure against it, and the systems to rank."""

    name: str | None = Field(None, description="Store the table under this name, as the next version.")
    reference: str = Field(description="Qrels lines.")
    judges: list[JudgeLabels] = Field(min_length=1, max_length=256)
    runs: str = Field("", description="Run lines of all systems; without them tau and rho are null.")
    measure: str = Field("ndcg_cut_10", description="ndcg, ndcg_cut_k, map, P_k, recip_rank or recall_k.")
    relevance_level: int = Field(1, ge=0, le=3, description="Lowest grade that counts as relevant.")
    draws: int = Field(2000, ge=1, le=10_000, description="Bootstrap samples of queries.")
    seed: int = Field(0, ge=0, lt=2**32, description="Of the bootstrap.")
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
    reference, runs = trec.parse_qrels(body.reference, "reference"), trec.parse_runs(body.runs)
    options = body.model_dump(include={"measure", "relevance_level", "draws", "seed", "sort"})
    try:
        table = build_leaderboard(reference, entries, runs, **options)
    except ValueError as error:
        raise InvalidOption(str(error), field="measure") from error
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
    entries = [LeaderboardEntry(judge=name, labels=labels) for name, labels in load_mini_judgements().items()]
    table = build_leaderboard(load_mini_collection().labels, entries, load_mini_runs(), sort=sort)
    return table.model_copy(update={"name": MINI, "version": 1})


def _open_store(request: Request) -> VersionedStore:
    return VersionedStore(tenant_store(request).under("leaderboards"), "leaderboard")
