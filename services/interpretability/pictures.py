"""A report in the forms that can be asked for beside JSON. Which form draws what, `plots` and `page` know."""

from __future__ import annotations

from services.interpretability.report import Report

__all__ = ["MEDIA_TYPES", "render"]

MEDIA_TYPES: tuple[str, ...] = ()


def render(report: Report, media_type: str) -> bytes | None:
    """The report as `media_type`, or None when there is no such form."""
    return None if media_type not in MEDIA_TYPES else report.model_dump_json().encode()
