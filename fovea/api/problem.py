"""Errors on the wire: RFC 9457 problems and the forms of three protocols, all from one `FoveaError`."""

from typing import Any

from pydantic import BaseModel, Field

from fovea.errors import FoveaError

PROBLEM_CONTENT_TYPE = "application/problem+json"


class Problem(BaseModel, extra="allow"):
    """An RFC 9457 problem: what went wrong, why, what to try, and the id under which the log has more."""

    type: str = Field("about:blank", description="Stable URI reference of the kind of problem.")
    title: str = Field(description="The kind of problem in words.")
    status: int = Field(description="HTTP status.")
    detail: str = Field(description="The problem and its cause.")
    code: str = Field(description="Machine-readable word for the kind.")
    hint: str | None = Field(None, description="What to try.")
    field: str | None = Field(None, description="The offending option, tensor or parameter.")
    request_id: str | None = Field(None, description="Names this request in the logs.")


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


def problem(error: FoveaError, request_id: str | None = None) -> Problem:
    """The problem body of an error."""
    facts = {name: getattr(error, name) for name in ("title", "status", "detail", "code", "hint", "field")}
    return Problem(type=f"/problems/{error.code}", request_id=request_id, **facts)


def _sentence(error: FoveaError) -> str:
    return f"{error.detail} {error.hint}" if error.hint else error.detail


def openai_error(error: FoveaError, request_id: str | None = None) -> dict[str, Any]:
    """OpenAI's error body; fronts send a 422 of ours as a 400 of theirs."""
    kind = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    fallback = "invalid_request_error" if error.status < 500 else "server_error"
    return {
        "error": {
            "message": _sentence(error),
            "type": kind.get(error.status, fallback),
            "param": error.field,
            "code": getattr(error, "openai_code", None) or error.code,
            "request_id": request_id,
        }
    }


def anthropic_error(error: FoveaError, request_id: str | None = None) -> dict[str, Any]:
    """Anthropic's error body."""
    kinds = {
        401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
        429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error",
    }  # fmt: skip
    kind = kinds.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": _sentence(error)}, "request_id": request_id}


def oip_error(error: FoveaError) -> dict[str, str]:
    """Open Inference v2's error body."""
    return {"error": _sentence(error)}
