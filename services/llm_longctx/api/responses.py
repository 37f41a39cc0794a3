"""OpenAI's Responses route, on the chats of the same models: whole or as events. Knows HTTP and the host."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import ValidationError
from starlette.responses import Response, StreamingResponse

from services.llm_longctx.api.openai import ERROR_RESPONSES, OPENAI_ERRORS, SSE_HEADERS, prepare
from services.llm_longctx.serving.chat import ChatProtocol
from services.llm_longctx.serving.responses import Event, ResponseBuilder, build_chat_request
from shared.api.responses import ResponseObject, ResponsesRequest
from shared.api.text import ChatChunk, ChatRequest
from shared.errors import InvalidOption
from shared.serving.host import Host
from shared.serving.http.errors import to_safe_error
from shared.serving.http.system_routes import host_of

__all__ = ["router"]

router = APIRouter(tags=["openai"])


@router.post("/v1/responses", responses=ERROR_RESPONSES, openapi_extra=OPENAI_ERRORS, response_model=ResponseObject)
async def respond(body: ResponsesRequest, request: Request, host: Annotated[Host, Depends(host_of)]) -> Response:
    """Answer items with items. Nothing is stored; a model with a memory takes `session_id`."""
    chunks = await _open_chunks(_to_chat(body), request, host)
    builder = ResponseBuilder(body)
    if body.stream:
        first = await anext(chunks)  # what goes wrong at once is an ordinary error
        lines = _event_lines(builder, first, chunks)
        return StreamingResponse(lines, media_type="text/event-stream", headers=SSE_HEADERS)
    async for chunk in chunks:
        _drain(builder.feed(chunk))
    _drain(builder.end())
    return Response(builder.response.model_dump_json(), media_type="application/json")


def _to_chat(body: ResponsesRequest) -> ChatRequest:
    try:
        return build_chat_request(body)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InvalidOption(f"{field}: {first['msg']}.", field=field) from error


async def _open_chunks(chat: ChatRequest, request: Request, host: Host) -> AsyncIterator[ChatChunk]:
    """The chunks of the chat; of one that was answered before, those that it had."""
    prepared = await prepare(chat, request, host)

    async def chunks() -> AsyncIterator[ChatChunk]:
        if isinstance(prepared, str):
            for chunk in ChatProtocol().replay(prepared):
                yield chunk
            return
        async for event in host.stream(request.scope["fovea.model"], prepared, request.scope["fovea.run"]):
            if isinstance(event, ChatChunk):
                yield event

    return chunks()


async def _event_lines(
    builder: ResponseBuilder, first: ChatChunk, rest: AsyncIterator[ChatChunk]
) -> AsyncIterator[str]:
    for event in (*builder.begin(), *builder.feed(first)):
        yield _line(event)
    try:
        async for chunk in rest:
            for event in builder.feed(chunk):
                yield _line(event)
    except Exception as error:  # noqa: BLE001  # the status is sent already: the error goes into the stream
        safe = to_safe_error(error, "The stream")
        yield _line({"type": "error", "code": safe.code, "message": safe.detail, "param": safe.field})
        return
    for event in builder.end():
        yield _line(event)


def _line(event: Event) -> str:
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"


def _drain(events: Iterator[Event]) -> None:
    """Let the builder do its work where nobody reads its events."""
    for _ in events:
        pass
