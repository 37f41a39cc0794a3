"""Routes of `/v1/judge/…` about systems, collections and answers, one subject a file."""

from fastapi import APIRouter

from fovea_evaluation.routes import answers, collection, corrected, leaderboard, rankings, significance

router = APIRouter(prefix="/v1/judge", tags=["judge"])
for subject in (rankings, significance, corrected, answers, leaderboard, collection):
    router.include_router(subject.router)
