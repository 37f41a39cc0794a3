"""OpenAI's routes: chat and text completion, whole or as server-sent events, and tokenize and detokenize.

Errors take OpenAI's form because the routes ask for it. Knows HTTP and the host; models produce the answers.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel
from starlette.responses import Response, StreamingResponse

from fovea.api.problem import OpenAIError, openai_error
from fovea.api.replica import AFFINE
from fovea.api.text import (
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
    Detokenized,
    DetokenizeRequest,
    Tokenized,
    TokenizeRequest,
    TokenizerInfo,
)
from services.llm_longctx.api.model_lookup import find_model
from services.llm_longctx.api.state_loading import load_state
from services.llm_longctx.serving.chat import ChatProtocol
from services.llm_longctx.serving.completions import TextCompletionProtocol
from services.llm_longctx.serving.protocol import AnswerT, ChunkT, CompletionProtocol, RequestT
from shared import telemetry
from shared.registry import CallContext
from shared.serving.host import Host
from shared.serving.http.errors import to_safe_error
from shared.serving.http.system_routes import host_of

HostDep = Annotated[Host, Depends(host_of)]

ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": OpenAIError, "description": "The request can't be served as it is; `param` names what is wrong."},
    "5XX": {"model": OpenAIError, "description": "Not ready, too late, or an internal error."},
}
OPENAI_ERRORS = {"x-error-form": "openai"}
"""Asks `shared.serving.http.error_rendering` for errors in OpenAI's form."""

_STREAM = {"description": "The answer, or its chunks with `stream`.", "content": {"text/event-stream": {}}}
_TEXT_ROUTE: dict[str, Any] = {
    "responses": {200: _STREAM, **ERROR_RESPONSES}, "openapi_extra": {**OPENAI_ERRORS, **AFFINE}
}  # fmt: skip

SSE_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}

FIRST_CHUNK_WAIT_S = 1.0
"""Seconds after which a queued stream begins to send comments with its place in the queue."""

TextRequest = ChatRequest | CompletionRequest

router = APIRouter(tags=["openai"])


@router.post("/v1/chat/completions", response_model=ChatCompletion, **_TEXT_ROUTE)
async def chat(body: ChatRequest, request: Request, host: HostDep) -> Response:
    """Complete a conversation."""
    return await _answer(body, request, host, ChatProtocol())


@router.post("/v1/completions", response_model=Completion, **_TEXT_ROUTE)
async def complete(body: CompletionRequest, request: Request, host: HostDep) -> Response:
    """Complete a text; with `echo`, `logprobs` and `max_tokens` 0, score it."""
    return await _answer(body, request, host, TextCompletionProtocol())


@router.post("/tokenize", responses=ERROR_RESPONSES, openapi_extra=OPENAI_ERRORS)
async def tokenize(body: TokenizeRequest, request: Request, host: HostDep) -> Tokenized:
    """Cut a text, or a conversation under the model's template, into tokens."""
    model = await find_model(host, body.model, request)
    return await asyncio.to_thread(model.tokenize, body)


@router.post("/detokenize", responses=ERROR_RESPONSES, openapi_extra=OPENAI_ERRORS, response_model_exclude_none=True)
async def detokenize(body: DetokenizeRequest, request: Request, host: HostDep) -> Detokenized:
    """Join tokens into text."""
    model = await find_model(host, body.model, request)
    return await asyncio.to_thread(model.detokenize, body)


@router.get("/tokenizer_info", responses=ERROR_RESPONSES, openapi_extra=OPENAI_ERRORS)
async def tokenizer_info(
    request: Request,
    host: HostDep,
    model: Annotated[str | None, Query(description="Name of the model; left out, the default one.")] = None,
) -> TokenizerInfo:
    """Get a tokenizer's special tokens and chat template, as clients that tokenize by `/tokenize` ask for them."""
    adapter = (await find_model(host, model, request)).adapter
    own = adapter.tokenizer
    return TokenizerInfo(model_max_length=adapter.context, chat_template=own.chat_template, **own.names)


async def _answer(
    body: RequestT, request: Request, host: Host, protocol: CompletionProtocol[RequestT, ChunkT, AnswerT]
) -> Response:
    """Answer as one body or as events; a repeated request may get the answer that it got before."""
    if (before := await prepare(body, request, host)) is not None:
        return _replay(before, body, protocol)
    request.scope["fovea.run"].is_stream = bool(body.stream)
    events = host.stream(request.scope["fovea.model"], body, request.scope["fovea.run"])
    if not body.stream:
        answer = protocol.gather([event async for event in events if isinstance(event, protocol.chunk_type)])
        return Response(answer.model_dump_json(), media_type="application/json")
    first = asyncio.ensure_future(anext(events))
    if await _wait_for_first(first):
        first.result()  # what goes wrong at once is an ordinary error
    lines = _event_lines(first, events, request.scope["fovea.run"], _with_usage(body))
    return StreamingResponse(lines, media_type="text/event-stream", headers=SSE_HEADERS)


async def prepare(body: TextRequest, request: Request, host: Host) -> str | None:
    """Find the model, and load into the call what the request continues; or return the answer that it got before.

    Raises InvalidOption: It names two things to continue, or the model does not take such a thing.
    """
    state = await load_state(body, request, host)
    if isinstance(state, str):
        return state
    request.scope["fovea.run"].state = state
    if state is None:
        await find_model(host, body.model, request)
    return None


def _replay(answer: str, body: RequestT, protocol: CompletionProtocol[RequestT, ChunkT, AnswerT]) -> Response:
    """An answer that was given before, whole or streamed as it is requested now."""
    headers = {"idempotency-replayed": "true"}
    if not body.stream:
        return Response(answer, media_type="application/json", headers=headers)
    hidden = None if _with_usage(body) else {"usage"}
    pieces = [p for p in protocol.replay(answer) if p.choices or hidden is None]
    lines = [f"data: {p.model_dump_json(exclude_unset=True, exclude=hidden)}\n\n" for p in pieces]
    return Response("".join(lines) + "data: [DONE]\n\n", media_type="text/event-stream", headers=headers | SSE_HEADERS)


def _with_usage(body: TextRequest) -> bool:
    return body.stream_options is not None and body.stream_options.include_usage


async def _wait_for_first(first: asyncio.Future[BaseModel]) -> bool:
    """Whether the first chunk, or an error, came within `FIRST_CHUNK_WAIT_S`."""
    try:
        done, _ = await asyncio.wait({first}, timeout=FIRST_CHUNK_WAIT_S)
    except asyncio.CancelledError:
        first.cancel()
        raise
    return bool(done)


async def _event_lines(
    first: asyncio.Future[BaseModel], rest: AsyncIterator[BaseModel], run: CallContext, with_usage: bool
) -> AsyncIterator[str]:
    """Server-sent events; until the first chunk, comments give the place in the queue, which clients skip."""

    def line(event: BaseModel) -> str:
        return f"data: {event.model_dump_json(exclude_unset=True, exclude=None if with_usage else {'usage'})}\n\n"

    def usage() -> str:  # for the gateway alone, which counts and drops it (`fovea.api.usage`)
        return "" if run.scopes is None else f": usage {json.dumps(run.usage)}\n\n"

    try:
        while not await _wait_for_first(first):
            yield f": {run.note or 'waiting'}\n\n"
        yield line(first.result()) + usage()
        async for event in rest:
            yield line(event)
    except Exception as error:  # noqa: BLE001  # the status is sent already: the error goes into the stream
        told = openai_error(to_safe_error(error, "The stream"), telemetry.context().request_id)
        yield f"data: {json.dumps(told)}\n\n"
        return
    finally:
        first.cancel()
    yield usage() + "data: [DONE]\n\n"
