"""One entry of `GET /v1/models`: OpenAI's four fields, then ours; further facts of the Card ride along."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

__all__ = ["ModelEntry", "ModelList"]


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
