"""`GET /v1/judge/backends`: the endpoint that judges ask, and what it can do. Its key is never told."""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from services.relevance_judge.chat_client import MOST_SECONDS, Endpoint
from services.relevance_judge.judge import AT_ONCE, Judge
from shared.errors import FoveaError
from shared.registry import CallContext
from shared.settings import Settings

__all__ = ["router"]

router = APIRouter()


class Backend(BaseModel):
    """One endpoint."""

    base_url: str
    key: bool = Field(description="Whether a key is sent to it.")
    timeout_s: float
    concurrency: int = Field(description="Pairs of one judge under way at a time.")
    reachable: bool
    models: list[str]
    answers_logprobs: bool | None = Field(description="Log-probabilities of answers, for log-odds; null: not asked.")
    prompt_logprobs: bool | None = Field(description="Of prompts, for query-likelihood; null: not asked.")
    trouble: str | None = None


@router.get("/backends")
def backends(request: Request, probe: bool = False) -> list[Backend]:
    """The endpoints, with what they serve; `probe` asks for one token to see which log-probabilities there are."""
    settings: Settings = request.app.state.settings
    run: CallContext = request.scope["fovea.run"]
    facts = {
        "base_url": _without_secrets(settings.judge_base_url),
        "key": settings.judge_api_key is not None,
        "timeout_s": MOST_SECONDS,
        "concurrency": AT_ONCE,
    }
    judge = request.app.state.host.servable(None, "judge")
    assert isinstance(judge, Judge)  # noqa: S101  # this service serves nothing else
    try:
        models = judge.endpoint.models(run)
    except FoveaError as error:
        rest = {"answers_logprobs": None, "prompt_logprobs": None, "trouble": error.detail}
        return [Backend(**facts, reachable=False, models=[], **rest)]
    return [
        Backend(
            **facts,
            reachable=True,
            models=models,
            answers_logprobs=_answers(judge.endpoint, run) if probe else None,
            prompt_logprobs=_prompts(judge.endpoint, run) if probe else None,
        )
    ]


def _answers(endpoint: Endpoint, run: CallContext) -> bool:
    try:
        said = endpoint.chat([{"role": "user", "content": "Say yes."}], run, max_tokens=1, logprobs=True)
    except FoveaError:
        return False
    return bool(said.first)


def _prompts(endpoint: Endpoint, run: CallContext) -> bool:
    try:
        told, _ = endpoint.score(endpoint.tokens(run, prompt="yes or no"), run)
    except FoveaError:
        return False
    return any(value is not None for value in told)


def _without_secrets(url: str) -> str:
    """The address without user and password, which some people put there."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"
