"""What every route of the gateway's own says about its errors in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from shared.api.problem import PROBLEM_CONTENT_TYPE, Problem

__all__ = ["PROBLEMS"]

_CONTENT = {PROBLEM_CONTENT_TYPE: {"schema": Problem.model_json_schema()}, "application/json": {}}

PROBLEMS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "What is wrong with the request, and what to try.", "content": _CONTENT},
    "5XX": {"description": "What is wrong here.", "content": _CONTENT},
}
"""Client and server errors, as problems or in the route family's own form."""
