"""`/v1/judge/leaderboard`: judges side by side, computed from what is sent, or kept, or from the mini-collection."""

from __future__ import annotations

from functools import cache
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from services.relevance_judge.metrics.leaderboard import Board, Entry, Sort, board
from services.relevance_judge.parsing import trec
from services.relevance_judge.parsing.label_formats import parse_labels
from services.relevance_judge.routes.strict_model import Given
from services.relevance_judge.storage.mini_collection import mini, mini_judgements, mini_runs
from services.relevance_judge.storage.versioned_store import VersionedStore
from shared.errors import InvalidOption
from shared.serving.http.openapi_routes import problems

__all__ = ["router"]

router = APIRouter()

MINI = "mini"


class JudgeLabels(BaseModel):
    """One judge's labels."""

    model_config = ConfigDict(extra="forbid")

    judge: str = Field(min_length=1, max_length=120, description="Its name in the table.")
    template: str | None = Field(None, description="What it was asked with.")
    labels: str = Field(description="Qrels lines, or JSON lines as batches write them, which tell cost and time too.")


class LeaderboardIn(Given):
    """A reference, the judges to measure against it, and the systems to rank."""

    name: str | None = Field(None, description="Keep the table under this name, as the next version.")
    reference: str = Field(description="Qrels lines.")
    judges: list[JudgeLabels] = Field(min_length=1, max_length=256)
    runs: str = Field("", description="Run lines of all systems; without them tau and rho are null.")
    measure: str = Field("ndcg_cut_10", description="ndcg, ndcg_cut_k, map, P_k, recip_rank or recall_k.")
    relevance_level: int = Field(1, ge=0, le=3, description="Lowest grade that counts as relevant.")
    draws: int = Field(2000, ge=1, le=10_000, description="Bootstrap samples of queries.")
    seed: int = Field(0, ge=0, lt=2**32, description="Of the bootstrap.")
    sort: Sort = Field("kappa", description="The column to sort by, best first.")


@router.post("/leaderboard", responses=problems(400, 422))
def compare(request: Request, body: LeaderboardIn) -> Board:
    """Measure judges against a reference; with a name, keep the table."""
    if body.name == MINI:
        raise InvalidOption(f"{MINI!r} is the table that comes with the service.", field="name")
    entries = [
        Entry(judge=one.judge, template=one.template, given=parse_labels(one.labels, f"judges[{place}]"))
        for place, one in enumerate(body.judges)
    ]
    try:
        made = board(
            trec.parse_qrels(body.reference, "reference"),
            entries,
            trec.parse_runs(body.runs),
            measure=body.measure,
            relevance_level=body.relevance_level,
            draws=body.draws,
            seed=body.seed,
            sort=body.sort,
        )
    except ValueError as error:
        raise InvalidOption(str(error), field="measure") from error
    if body.name is None:
        return made
    version = _shelf(request).add(body.name, made.model_dump(mode="json", exclude={"name", "version"}))
    return made.model_copy(update={"name": body.name, "version": version})


@router.get("/leaderboard", responses=problems(404))
def show(
    request: Request, name: str = MINI, sort: Annotated[Sort, Query(description="The column, best first.")] = "kappa"
) -> Board:
    """A kept table, `name` or `name@version`; left out, the judges measured on the mini-collection."""
    if name == MINI:
        return _mini(sort)
    plain, version, kept = _shelf(request).get(name)
    return Board.model_validate({**kept, "name": plain, "version": version}).sorted_by(sort)


@cache
def _mini(sort: Sort) -> Board:
    entries = [Entry(judge=name, given=given) for name, given in mini_judgements().items()]
    return board(mini().labels, entries, mini_runs(), sort=sort).model_copy(update={"name": MINI, "version": 1})


def _shelf(request: Request) -> VersionedStore:
    return VersionedStore(request.app.state.settings.data_dir / "judge" / "leaderboards", "leaderboard")
