"""The form of all bodies here: unknown fields are refused, so that a misspelt option does not go unnoticed."""

from pydantic import BaseModel, ConfigDict

__all__ = ["Given"]


class Given(BaseModel):
    """A body."""

    model_config = ConfigDict(extra="forbid")
