"""Routes of `/v1/judge/…` about systems, collections and answers, one subject a file."""

from fastapi import APIRouter

from fovea_evaluation.routes import answers, collection, corrected, leaderboard, preferences, systems

router = APIRouter(prefix="/v1/judge", tags=["judge"])
for subject in (systems, corrected, answers, preferences, leaderboard, collection):
    router.include_router(subject.router)
