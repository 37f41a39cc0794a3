"""OpenAI's error body on the wire."""

from __future__ import annotations

from pydantic import BaseModel, Field


class ErrorFacts(BaseModel):
    """An error in OpenAI's form."""

    message: str
    type: str
    param: str | None = Field(None, description="The offending field.")
    code: str | None = Field(None, description="Machine-readable word for the kind.")
    request_id: str | None = Field(None, description="Ours: names this request in the logs.")


class OpenAIError(BaseModel):
    """OpenAI's error body."""

    error: ErrorFacts
