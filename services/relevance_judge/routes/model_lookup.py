"""Lookup of the judge that a request names."""

from __future__ import annotations

from typing import Any

from fastapi import Request

from fovea.errors import InvalidOption
from services.relevance_judge.judge import Judge


def get_judge(request: Request, name: str | None) -> Judge[Any]:
    """The loaded judge of that name (None: default); `NotFound` without one, `InvalidOption` if it is no judge."""
    found = request.app.state.host.servable(name, "judge")
    if not isinstance(found, Judge):
        raise InvalidOption(f"The model {name!r} is not a judge.", field="model")
    return found
