"""Request options of landmark models, and the refusal of attention-method knobs by models that take none.

Knows names and ranges; knows no model.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from fovea.api.longctx import LongctxOptions
from fovea.api.text import GenerationOptions
from fovea.errors import InvalidOption
from shared.validation_errors import list_errors

_COMMON = frozenset({"priority"})
"""Fields of `longctx` that concern no method."""


class LandmarkOptions(BaseModel, frozen=True, extra="forbid"):
    """How a stream is read through its blocks."""

    blocks: int = Field(2, ge=1, le=64, description="Blocks that each query fetches.")
    selection: Literal["per_token_and_head", "max_over_heads", "max_over_tokens"] = Field(
        "per_token_and_head", description="Queries that share a choice of blocks; `max_over_tokens` moves least."
    )
    offload: Literal["none", "cpu", "disk"] = Field("none", description="Where blocks wait.")
    capacity: int | None = Field(None, ge=1, le=1 << 20, description="Most blocks kept; the oldest go.")
    cite: bool = Field(True, description="Whether the answer says which blocks were fetched.")

    @classmethod
    def of(cls, longctx: LongctxOptions | None) -> LandmarkOptions:
        """Parse the options of a request.

        Raises:
            InvalidOption: An unknown knob, or a value out of range.
        """
        if longctx is None:
            return cls()
        try:
            return cls.model_validate(_written_fields(longctx))
        except ValidationError as error:
            first = list_errors(error)[0]
            name = str(first["loc"][0])
            hint = f"Knobs are {', '.join(cls.model_fields)}."
            is_unknown = first["type"] == "extra_forbidden"
            detail = f"A landmark model has no knob {name!r}." if is_unknown else f"{name}: {first['msg']}."
            raise InvalidOption(detail, hint=hint, field=f"longctx.{name}") from error


def merge_options(request: GenerationOptions, document: LandmarkOptions | None) -> LandmarkOptions:
    """The options of a request; where it gives none, those of its document.

    Raises:
        InvalidOption: It wants the document stored in another way, or echoed.
    """
    if document is None:
        return LandmarkOptions.of(request.longctx)
    if getattr(request, "echo", False):
        raise InvalidOption("A document is not echoed.", hint="GET /v1/documents/{id} shows it.", field="echo")
    given = LandmarkOptions.of(request.longctx)
    merged = document.model_copy(update={name: getattr(given, name) for name in given.model_fields_set})
    for name in ("offload", "capacity"):
        if getattr(merged, name) != getattr(document, name):
            detail = f"The document was stored with {name}={getattr(document, name)!r}."
            raise InvalidOption(detail, hint="Leave it out, or store it anew.", field=f"longctx.{name}")
    return merged


def refuse_knobs(longctx: LongctxOptions | None, model: str) -> None:
    """Refuse knobs of attention methods for models that have none.

    Raises:
        InvalidOption: There is one.
    """
    for name in _written_fields(longctx) if longctx is not None else ():
        detail = f"{model} has attention of its own, and no knob {name!r}."
        raise InvalidOption(detail, hint="Leave it out.", field=f"longctx.{name}")


def _written_fields(longctx: LongctxOptions) -> dict[str, Any]:
    """The caller's options, knobs and fields alike."""
    written = {name: getattr(longctx, name) for name in longctx.model_fields_set - _COMMON}
    return {**{k: v for k, v in written.items() if k != "knobs"}, **longctx.knobs}
