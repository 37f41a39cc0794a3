"""Routes of `/v1/judge/…`, one subject a file."""

from fastapi import APIRouter

from services.relevance_judge.routes import (
    agreement,
    answers,
    backends,
    batches,
    calibrations,
    collection,
    corrected,
    ensembles,
    leaderboard,
    preferences,
    rankings,
    signal_weights,
    significance,
    templates,
    trust,
)

__all__ = ["router"]

router = APIRouter(prefix="/v1/judge", tags=["judge"])
for subject in (
    agreement,
    trust,
    rankings,
    significance,
    corrected,
    ensembles,
    signal_weights,
    answers,
    preferences,
    leaderboard,
    templates,
    calibrations,
    batches,
    collection,
    backends,
):
    router.include_router(subject.router)
