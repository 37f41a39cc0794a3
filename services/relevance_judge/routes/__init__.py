"""Routes of `/v1/judge/…`, one subject a file."""

from importlib import import_module

from fastapi import APIRouter

__all__ = ["router"]

_SUBJECTS = """
agreement trust rankings significance corrected ensembles signal_weights answers preferences leaderboard templates
calibrations batches collection backends
"""
"""Modules with routes, in the order of the API's documentation."""

router = APIRouter(prefix="/v1/judge", tags=["judge"])
for subject in _SUBJECTS.split():
    router.include_router(import_module(f"{__name__}.{subject}").router)
