"""OpenAI's routes: chat and text completion, whole or as server-sent events, and the tokenizer's two.

Errors take OpenAI's form because the routes say so. Knows HTTP and the host; what an answer is, the models know.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel
from starlette.responses import Response, StreamingResponse

from services.llm_longctx import chat as chats
from services.llm_longctx import completions as texts
from services.llm_longctx.errors import ModelNotFound
from services.llm_longctx.language_model import LanguageModel
from shared import telemetry
from shared.api.problem import openai_error
from shared.api.text import (
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
    Detokenized,
    DetokenizeRequest,
    GenerationOptions,
    OpenAIError,
    Tokenized,
    TokenizeRequest,
)
from shared.errors import FoveaError, NotFound
from shared.serving.faults import blame
from shared.serving.host import Host
from shared.serving.system import host_of

__all__ = ["router"]

HostOf = Annotated[Host, Depends(host_of)]

_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": OpenAIError, "description": "The request can't be served as it is; `param` names what is wrong."},
    "5XX": {"model": OpenAIError, "description": "Not ready, too late, or our fault."},
}
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"description": "The answer, or its chunks with `stream`.", "content": {"text/event-stream": {}}}
}
_FORM = {"x-error-form": "openai"}
"""Tells `shared.serving.rendering` how errors of these routes look."""

router = APIRouter(tags=["openai"])


@router.post("/v1/chat/completions", responses=_STREAM | _ERRORS, openapi_extra=_FORM, response_model=ChatCompletion)
async def chat(body: ChatRequest, request: Request, host: HostOf) -> Response:
    """Go on with a conversation."""
    return await _answer(body, request, host, chats.gather)


@router.post("/v1/completions", responses=_STREAM | _ERRORS, openapi_extra=_FORM, response_model=Completion)
async def complete(body: CompletionRequest, request: Request, host: HostOf) -> Response:
    """Go on with a text; with `echo`, `logprobs` and `max_tokens` 0, score it."""
    return await _answer(body, request, host, texts.gather)


@router.post("/tokenize", responses=_ERRORS, openapi_extra=_FORM)
async def tokenize(body: TokenizeRequest, request: Request, host: HostOf) -> Tokenized:
    """Cut a text, or a conversation under the model's template, into tokens."""
    model = _model(host, body.model, request)
    return await asyncio.to_thread(model.tokenize, body)


@router.post("/detokenize", responses=_ERRORS, openapi_extra=_FORM)
async def detokenize(body: DetokenizeRequest, request: Request, host: HostOf) -> Detokenized:
    """Join tokens into text."""
    model = _model(host, body.model, request)
    return await asyncio.to_thread(model.detokenize, body)


def _model(host: Host, name: str | None, request: Request) -> LanguageModel:
    """The language model of that name, ready."""
    try:
        resolved = host.resolve(name, "chat")
    except NotFound as error:
        raise ModelNotFound(error.detail, hint=error.hint, field="model") from error
    request.scope["fovea.model"] = resolved
    servable = host.servable(resolved)
    assert isinstance(servable, LanguageModel)  # noqa: S101  # this service serves nothing else under chat
    return servable


async def _answer(
    body: GenerationOptions, request: Request, host: Host, gather: Callable[[Iterable[Any]], BaseModel]
) -> Response:
    model = _model(host, body.model, request)
    events = host.stream(model.speaker.name, body, request.scope["fovea.run"])
    if not body.stream:
        answer = gather([event async for event in events])
        return Response(answer.model_dump_json(), media_type="application/json")
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    first = await anext(events)  # what goes wrong before the first chunk is an ordinary error
    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    return StreamingResponse(_sse(first, events, with_usage), media_type="text/event-stream", headers=headers)


async def _sse(first: BaseModel, rest: AsyncIterator[BaseModel], with_usage: bool) -> AsyncIterator[str]:
    hidden = None if with_usage else {"usage"}

    def line(event: BaseModel) -> str:
        return f"data: {event.model_dump_json(exclude_unset=True, exclude=hidden)}\n\n"

    yield line(first)
    try:
        async for event in rest:
            yield line(event)
    except Exception as error:  # noqa: BLE001  # the status is sent: the stream itself must say what went wrong
        yield _failed(blame(error, "The stream"))
        return
    yield "data: [DONE]\n\n"


def _failed(error: FoveaError) -> str:
    return f"data: {json.dumps(openai_error(error, telemetry.context().request_id))}\n\n"
