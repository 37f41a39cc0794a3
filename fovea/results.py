"""Result types of the clients, next to the wire types of `fovea.api`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, TypedDict, TypeVar

import httpx2
from pydantic import BaseModel, Field

from fovea.api.mask import Form
from fovea.api.model import ModelEntry
from fovea.api.tensors import TensorSpec

Model = TypeVar("Model", bound=BaseModel)


class SegmentOptions(TypedDict, total=False):
    """Options of `segment`, as `fovea.api.mask.SegmentIn` describes them."""

    threshold: float
    normalise: Literal["none", "minmax"]
    min_area: int
    min_peak: float
    keep_largest: bool
    include: Sequence[Form]


class SweepOptions(TypedDict, total=False):
    """Options of `sweep`, as `fovea.api.sweeps.SweepRequest` describes them; None is left out."""

    source: str | Sequence[Any] | None
    site: str
    layers: Sequence[int] | None
    positions: Sequence[int] | None
    by: Literal["position", "head"]
    heads: Sequence[int] | None
    model: str | None


class ModelCard(ModelEntry, extra="allow", populate_by_name=True):
    """The card of one model; facts that this version does not know are kept as attributes."""

    summary: str = ""
    licence: str = ""
    inputs: list[TensorSpec] = Field(default_factory=list)
    outputs: list[TensorSpec] = Field(default_factory=list)
    media_types: list[str] = Field(default_factory=list)
    request_schema: dict[str, Any] = Field(default_factory=dict, alias="schema")
    answer_schema: dict[str, Any] = Field(default_factory=dict)


class MethodCard(BaseModel, extra="allow"):
    """One attention method, as `/v1/longctx/methods` describes it; facts that this version does not know are kept."""

    name: str
    summary: str
    help: str = ""
    phases: list[str] = []
    needs_plan: bool = False
    knobs: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class JobResult:
    """The answer of a job, byte for byte what the request itself would have had."""

    content_type: str
    content: bytes

    @classmethod
    def from_response(cls, response: httpx2.Response) -> Self:
        """Take the result from a response."""
        return cls(response.headers.get("content-type", "application/octet-stream"), response.content)

    def json(self) -> Any:
        """Parse the answer as JSON. Raises ValueError: it is not JSON."""
        return json.loads(self.content)

    def parse(self, kind: type[Model]) -> Model:
        """Parse the answer as a type, for example `SegmentOut`."""
        return kind.model_validate_json(self.content)
