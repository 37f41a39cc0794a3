"""Routes of `/v1/judge/…`, one subject a file."""

from fastapi import APIRouter

from services.relevance_judge.routes import (
    agreement,
    backends,
    batches,
    calibrations,
    collection,
    ensembles,
    leaderboard,
    rankings,
    templates,
)

__all__ = ["router"]

router = APIRouter(prefix="/v1/judge", tags=["judge"])
for subject in (agreement, rankings, ensembles, leaderboard, templates, calibrations, batches, collection, backends):
    router.include_router(subject.router)
