"""Routes of `/v1/judge/…`, one subject a file; those about systems and answers come with the plug-in evaluation."""

from fastapi import APIRouter

# isort: off
from services.relevance_judge.routes import (
    agreement, backends, batches, calibrations, collection, ensembles, templates, trust,
)  # fmt: skip
# isort: on

router = APIRouter(prefix="/v1/judge", tags=["judge"])
for subject in (  # in the order of the API's documentation
    agreement, trust, ensembles, templates, calibrations, batches, collection, backends,
):  # fmt: skip
    router.include_router(subject.router)
