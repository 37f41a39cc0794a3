"""`GET /v1/judge/backends`: the endpoint that judges ask, and what it can do, without its key; lookup of judges."""

from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from fovea.errors import FoveaError, InvalidOption
from services.relevance_judge.chat_client import REQUEST_TIMEOUT_S, ChatClient
from services.relevance_judge.judge import MAX_CONCURRENT_PAIRS, Judge
from shared.registry import CallContext
from shared.settings import Settings

router = APIRouter()


def get_judge(request: Request, name: str | None) -> Judge[Any]:
    """The loaded judge of that name (None: default); `NotFound` without one, `InvalidOption` if it is not a judge."""
    found = request.app.state.host.servable(name, "judge")
    if not isinstance(found, Judge):
        raise InvalidOption(f"The model {name!r} is not a judge.", field="model")
    return found


class Backend(BaseModel):
    """One endpoint."""

    base_url: str
    key: bool = Field(description="Whether a key is sent to it.")
    timeout_s: float
    concurrency: int = Field(description="Most pairs that one request judges at a time.")
    reachable: bool
    models: list[str]
    answers_logprobs: bool | None = Field(description="Log-probabilities of answers, for log-odds; null: not asked.")
    prompt_logprobs: bool | None = Field(description="Of prompts, for query-likelihood; null: not asked.")
    trouble: str | None = None


@router.get("/backends")
def list_backends(
    request: Request,
    probe: Annotated[bool, Query(description="Send each a request and report how it answers.")] = False,
) -> list[Backend]:
    """List the endpoints and their models; `probe` asks for one token to see which log-probabilities there are."""
    settings: Settings = request.app.state.settings
    run: CallContext = request.scope["fovea.run"]
    url = urlsplit(settings.judge_base_url)
    facts = {
        "base_url": f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}",  # without user and password
        "key": settings.judge_api_key is not None,
        "timeout_s": REQUEST_TIMEOUT_S,
        "concurrency": MAX_CONCURRENT_PAIRS,
    }
    judge = get_judge(request, None)
    try:
        models = judge.client.list_models(run)
    except FoveaError as error:
        rest = {"answers_logprobs": None, "prompt_logprobs": None, "trouble": error.detail}
        return [Backend(**facts, reachable=False, models=[], **rest)]
    asked = (_serves_answer_logprobs(judge.client, run), _serves_prompt_logprobs(judge.client, run)) if probe else None
    answers, prompts = asked or (None, None)
    return [Backend(**facts, reachable=True, models=models, answers_logprobs=answers, prompt_logprobs=prompts)]


def _serves_answer_logprobs(client: ChatClient, run: CallContext) -> bool:
    try:
        reply = client.chat([{"role": "user", "content": "Say yes."}], run, max_tokens=1, logprobs=True)
    except FoveaError:
        return False
    return bool(reply.first_logprobs)


def _serves_prompt_logprobs(client: ChatClient, run: CallContext) -> bool:
    try:
        logprobs, _ = client.score_tokens(client.tokenize(run, prompt="yes or no"), run)
    except FoveaError:
        return False
    return any(value is not None for value in logprobs)
