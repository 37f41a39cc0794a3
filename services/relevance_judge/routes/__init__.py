"""Routes of `/v1/judge/…`, one subject a file."""

from fastapi import APIRouter

# isort: off
from services.relevance_judge.routes import (
    agreement, answers, backends, batches, calibrations, collection, corrected, ensembles, leaderboard, preferences,
    rankings, signal_weights, significance, templates, trust,
)  # fmt: skip
# isort: on

router = APIRouter(prefix="/v1/judge", tags=["judge"])
for subject in (  # in the order of the API's documentation
    agreement, trust, rankings, significance, corrected, ensembles, signal_weights, answers, preferences, leaderboard,
    templates, calibrations, batches, collection, backends,
):  # fmt: skip
    router.include_router(subject.router)
