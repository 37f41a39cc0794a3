"""OpenAI's routes: chat and text completion, whole or as server-sent events, and the tokenizer's two.

Errors take OpenAI's form because the routes say so. Knows HTTP and the host; what an answer is, the models know.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel
from starlette.responses import Response, StreamingResponse

from services.llm_longctx.api.documents import documents_of
from services.llm_longctx.api.model_lookup import model_of
from services.llm_longctx.api.sessions import sessions_of
from services.llm_longctx.serving import chat as chats
from services.llm_longctx.serving import completions as texts
from services.llm_longctx.serving.adapters.landmark import LandmarkAdapter
from services.llm_longctx.serving.adapters.titans import TitansAdapter
from services.llm_longctx.serving.request_state import PreparedRequest
from services.llm_longctx.serving.text_model import TextModel
from services.llm_longctx.state.session_service import body_digest
from shared import telemetry
from shared.api.problem import openai_error
from shared.api.text import (
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
    Detokenized,
    DetokenizeRequest,
    OpenAIError,
    Tokenized,
    TokenizeRequest,
)
from shared.errors import FoveaError
from shared.registry import CallContext
from shared.serving.host import Host
from shared.serving.http.errors import to_safe_error
from shared.serving.http.system_routes import host_of

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
"""Tells `shared.serving.http.error_rendering` how errors of these routes look."""

_LIVE = {"cache-control": "no-cache", "x-accel-buffering": "no"}

PATIENCE_S = 1.0
"""Seconds after which a stream that waits for its turn begins with comments on where it stands."""

Asked = ChatRequest | CompletionRequest

router = APIRouter(tags=["openai"])


@router.post("/v1/chat/completions", responses=_STREAM | _ERRORS, openapi_extra=_FORM, response_model=ChatCompletion)
async def chat(body: ChatRequest, request: Request, host: HostOf) -> Response:
    """Go on with a conversation."""
    return await _answer(body, request, host, chats)


@router.post("/v1/completions", responses=_STREAM | _ERRORS, openapi_extra=_FORM, response_model=Completion)
async def complete(body: CompletionRequest, request: Request, host: HostOf) -> Response:
    """Go on with a text; with `echo`, `logprobs` and `max_tokens` 0, score it."""
    return await _answer(body, request, host, texts)


@router.post("/tokenize", responses=_ERRORS, openapi_extra=_FORM)
async def tokenize(body: TokenizeRequest, request: Request, host: HostOf) -> Tokenized:
    """Cut a text, or a conversation under the model's template, into tokens."""
    model = model_of(host, body.model, request)
    return await asyncio.to_thread(model.tokenize, body)


@router.post("/detokenize", responses=_ERRORS, openapi_extra=_FORM)
async def detokenize(body: DetokenizeRequest, request: Request, host: HostOf) -> Detokenized:
    """Join tokens into text."""
    model = model_of(host, body.model, request)
    return await asyncio.to_thread(model.detokenize, body)


async def _answer(body: Asked, request: Request, host: Host, protocol: Any) -> Response:
    """Answer as one body or as events; a request that a session has answered before gets that answer again."""
    model = model_of(host, body.model, request, remembers=bool(body.session_id), cites=bool(body.document_id))
    turn = await _turn(body, request, model)
    if isinstance(turn, str):
        return _again(turn, body, protocol)
    events = host.stream(model.speaker.name, turn, request.scope["fovea.run"])
    if not body.stream:
        answer: BaseModel = protocol.gather([event async for event in events])
        return Response(answer.model_dump_json(), media_type="application/json")
    first = asyncio.ensure_future(anext(events))
    if await _came(first):
        first.result()  # what goes wrong at once is an ordinary error
    lines = _sse(first, events, request.scope["fovea.run"], _with_usage(body))
    return StreamingResponse(lines, media_type="text/event-stream", headers=_LIVE)


async def _turn(body: Asked, request: Request, model: TextModel) -> Asked | PreparedRequest | str:
    """The request with what it names: a session or a document; or the answer that it was given before."""
    if body.session_id is None and body.document_id is None:
        return body
    if body.session_id is not None:
        voice = cast("TitansAdapter", model.speaker)
        asked = body.model_dump_json(exclude={"stream", "stream_options"})
        once = request.scope["fovea.run"].job or request.headers.get("idempotency-key")
        session = await sessions_of(request).remembered(body.session_id, voice, body_digest(asked), once)
        return session if isinstance(session, str) else PreparedRequest(asked=body, brought=session)
    document = await documents_of(request).brought(body.document_id or "", cast("LandmarkAdapter", model.speaker))
    return PreparedRequest(asked=body, brought=document)


def _again(answer: str, body: Asked, protocol: Any) -> Response:
    """An answer that was given before, in the form that is asked for now."""
    headers = {"idempotency-replayed": "true"}
    if not body.stream:
        return Response(answer, media_type="application/json", headers=headers)
    hidden = None if _with_usage(body) else {"usage"}
    pieces = [p for p in protocol.replayed(answer) if p.choices or hidden is None]
    lines = [f"data: {p.model_dump_json(exclude_unset=True, exclude=hidden)}\n\n" for p in pieces]
    return Response("".join(lines) + "data: [DONE]\n\n", media_type="text/event-stream", headers=headers | _LIVE)


def _with_usage(body: Asked) -> bool:
    return body.stream_options is not None and body.stream_options.include_usage


async def _came(first: asyncio.Future[BaseModel]) -> bool:
    """Whether the first chunk, or what went wrong, was there before patience ended."""
    try:
        done, _ = await asyncio.wait({first}, timeout=PATIENCE_S)
    except asyncio.CancelledError:
        first.cancel()
        raise
    return bool(done)


async def _sse(
    first: asyncio.Future[BaseModel], rest: AsyncIterator[BaseModel], run: CallContext, with_usage: bool
) -> AsyncIterator[str]:
    """Events; comments tell the place in the queue while the first is waited for, and clients skip them."""
    hidden = None if with_usage else {"usage"}

    def line(event: BaseModel) -> str:
        return f"data: {event.model_dump_json(exclude_unset=True, exclude=hidden)}\n\n"

    try:
        while not await _came(first):
            yield f": {run.note or 'waiting'}\n\n"
        yield line(first.result())
        async for event in rest:
            yield line(event)
    except Exception as error:  # noqa: BLE001  # the status is sent: the stream itself must say what went wrong
        yield _failed(to_safe_error(error, "The stream"))
        return
    finally:
        first.cancel()
    yield "data: [DONE]\n\n"


def _failed(error: FoveaError) -> str:
    return f"data: {json.dumps(openai_error(error, telemetry.context().request_id))}\n\n"
