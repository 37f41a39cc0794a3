"""What the clients give back, beside the wire types of `shared.api`. Data with a few conveniences; sends nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, TypeVar

import httpx2
from pydantic import BaseModel, ConfigDict, Field

from shared.api.mask import Form
from shared.api.model import ModelEntry
from shared.api.tensors import TensorSpec

__all__ = ["JobResult", "ModelCard", "SegmentOptions"]

Model = TypeVar("Model", bound=BaseModel)


class SegmentOptions(TypedDict, total=False):
    """Options of `segment`, as `shared.api.mask.SegmentIn` describes them."""

    threshold: float
    normalise: Literal["none", "minmax"]
    min_area: int
    keep_largest: bool
    include: Sequence[Form]


class ModelCard(ModelEntry):
    """Everything about one model; facts that this version does not name ride along as attributes."""

    model_config = ConfigDict(extra="allow")

    summary: str = ""
    licence: str = ""
    inputs: list[TensorSpec] = Field(default_factory=list)
    outputs: list[TensorSpec] = Field(default_factory=list)
    media_types: list[str] = Field(default_factory=list)
    request_schema: dict[str, Any] = Field(default_factory=dict, alias="schema")
    answer_schema: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JobResult:
    """The answer of a job, byte for byte what the request would have had at once."""

    content_type: str
    content: bytes

    @classmethod
    def of(cls, response: httpx2.Response) -> JobResult:
        """The result that a response carries."""
        return cls(response.headers.get("content-type", "application/octet-stream"), response.content)

    def json(self) -> Any:
        """The answer as Python values.

        Raises:
            ValueError: It is not JSON.
        """
        return json.loads(self.content)

    def parse(self, kind: type[Model]) -> Model:
        """The answer as one of the typed answers, for example `SegmentOut`."""
        return kind.model_validate_json(self.content)
