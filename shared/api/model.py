"""One entry of `GET /v1/models`: OpenAI's four fields, then ours; further facts of the Card ride along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

__all__ = ["ModelEntry", "ModelList", "sparsity_in_words"]


class ModelEntry(BaseModel):
    """A served model in OpenAI's form with the Card's facts as further fields."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "fovea"
    task: str
    service: str
    ready: bool


class ModelList(BaseModel):
    """All models of all services; chat models first, the default chat model is `data[0]`."""

    object: Literal["list"] = "list"
    data: list[ModelEntry]


def sparsity_in_words(claim: Mapping[str, Any]) -> str:
    """A sparsity claim of a card in a line: what is left out, and what that was measured to be worth."""
    left_out = f"{claim['sparsity_global']:.1%} of {claim['kind'] or 'something'} left out by {claim['granularity']}"
    measured = claim.get("measured")
    speed = f"{measured['speedup']:.2f} × the speed of dense" if measured else "speed not measured"
    return f"{left_out}; {speed}"
