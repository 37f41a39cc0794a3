"""The knobs of a landmark model's request. Knows names and ranges; knows no model."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.api.text import LongctxOptions
from shared.errors import InvalidOption

__all__ = ["LandmarkOptions", "refuse_knobs"]

_COMMON = frozenset({"priority"})
"""Fields of `longctx` that concern no method."""


class LandmarkOptions(BaseModel):
    """How a stream is read through its blocks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    blocks: int = Field(2, ge=1, le=64, description="Blocks that each query fetches.")
    selection: Literal["per_token_and_head", "max_over_heads", "max_over_tokens"] = Field(
        "per_token_and_head", description="Who shares a choice of blocks; `max_over_tokens` moves least."
    )
    offload: Literal["none", "cpu", "disk"] = Field("none", description="Where blocks wait.")
    capacity: int | None = Field(None, ge=1, le=1 << 20, description="Most blocks kept; the oldest go.")
    cite: bool = Field(True, description="Whether the answer says which blocks were fetched.")

    @classmethod
    def of(cls, given: LongctxOptions | None) -> LandmarkOptions:
        """The knobs that a request gives.

        Raises:
            InvalidOption: One that there is not, or a value out of range.
        """
        if given is None:
            return cls()
        try:
            return cls.model_validate(_given(given))
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0])
            known = f"Knobs are {', '.join(cls.model_fields)}."
            odd = first["type"] == "extra_forbidden"
            said = f"A landmark model has no knob {name!r}." if odd else f"{first['msg']}."
            raise InvalidOption(said, hint=known, field=f"longctx.{name}") from error


def refuse_knobs(given: LongctxOptions | None, model: str) -> None:
    """Refuse knobs of attention methods for models that have none.

    Raises:
        InvalidOption: There is one.
    """
    for name in _given(given) if given is not None else ():
        detail = f"{model} has attention of its own, and no knob {name!r}."
        raise InvalidOption(detail, hint="Leave it out.", field=f"longctx.{name}")


def _given(given: LongctxOptions) -> dict[str, Any]:
    """What the caller wrote, knobs and fields alike."""
    written = {name: getattr(given, name) for name in given.model_fields_set - _COMMON}
    return {**{k: v for k, v in written.items() if k != "knobs"}, **given.knobs}
