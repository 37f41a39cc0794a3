"""OpenAI's Responses routes, on the chats of the same models: whole or as events, stored where a request asks for it.

Knows HTTP and the host.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Depends, Path, Request
from pydantic import ValidationError
from pydantic_core import PydanticSerializationError
from starlette.responses import Response, StreamingResponse

from fovea.api.replica import AFFINE, HOLDS_HEADER
from fovea.api.request_fields import check_fields
from fovea.api.responses import InputItem, InputItemList, ResponseObject, ResponsesRequest
from fovea.api.sessions import Deleted
from fovea.api.text import ChatChunk, ChatRequest
from fovea.errors import InvalidOption, Malformed
from services.llm_longctx.api.chat_chunks import name_fields, stream_chunks
from services.llm_longctx.api.openai import ERROR_RESPONSES, OPENAI_ERRORS, SSE_HEADERS, prepare
from services.llm_longctx.serving.chat import ChatProtocol
from services.llm_longctx.serving.response_store import ResponseStore, StoredResponse
from services.llm_longctx.serving.responses import Event, ResponseBuilder, build_chat_request, list_input, rename_fields
from shared.serving.host import Host
from shared.serving.http.errors import to_safe_error
from shared.serving.http.system_routes import host_of
from shared.serving.http.tenant import tenant_store
from shared.validation_errors import list_errors

router = APIRouter(tags=["openai"])

ResponseId = Annotated[str, Path(description="Id of a response that was asked for with `store: true`.")]


def get_response_store(request: Request) -> ResponseStore:
    """The caller's stored responses."""
    return ResponseStore(tenant_store(request))


StoreDep = Annotated[ResponseStore, Depends(get_response_store)]


@router.post(
    "/v1/responses",
    responses=ERROR_RESPONSES,
    openapi_extra={**OPENAI_ERRORS, **AFFINE},
    response_model=ResponseObject,
)
async def respond(
    body: ResponsesRequest, request: Request, host: Annotated[Host, Depends(host_of)], store: StoreDep
) -> Response:
    """Answer items with items, also after a stored response."""
    _check_characters(body)
    warnings = check_fields(body, is_strict=body.strict)
    earlier = []
    if (before := body.previous_response_id) is not None:
        earlier = (await asyncio.to_thread(store.get, before, "previous_response_id")).conversation
    request.scope["fovea.run"].is_stream = bool(body.stream)
    chunks = await _open_chunks(_to_chat(body, earlier), request, host)
    answer = _Answer.begin(body, earlier, store, warnings)
    holds = {HOLDS_HEADER: answer.builder.response.id}
    if body.stream:
        first = await anext(chunks)  # what goes wrong at once is an ordinary error
        lines = _event_lines(answer, first, chunks)
        return StreamingResponse(lines, media_type="text/event-stream", headers=SSE_HEADERS | holds)
    async for chunk in chunks:
        _drain(answer.builder.feed(chunk))
    await answer.end()
    return Response(answer.builder.response.model_dump_json(), media_type="application/json", headers=holds)


@router.get("/v1/responses/{response_id}", responses=ERROR_RESPONSES, openapi_extra=OPENAI_ERRORS)
def show(response_id: ResponseId, store: StoreDep) -> ResponseObject:
    """Show a stored response."""
    return store.get(response_id).response


@router.get("/v1/responses/{response_id}/input_items", responses=ERROR_RESPONSES, openapi_extra=OPENAI_ERRORS)
def list_input_items(response_id: ResponseId, store: StoreDep) -> InputItemList:
    """List what a stored response was made from: the conversation before it, oldest first."""
    items = store.get(response_id).input
    ids = [item["id"] for item in items]
    return InputItemList(data=items, first_id=ids[0] if ids else None, last_id=ids[-1] if ids else None)


@router.delete("/v1/responses/{response_id}", responses=ERROR_RESPONSES, openapi_extra=OPENAI_ERRORS)
def delete(response_id: ResponseId, store: StoreDep) -> Deleted:
    """Delete a stored response; those that went on from it keep the conversation."""
    store.delete(response_id)
    return Deleted(id=response_id, object="response")


@dataclass(frozen=True)
class _Answer:
    """An answer being made, and its place in the store if its request asks for it."""

    builder: ResponseBuilder
    input: list[InputItem]
    store: ResponseStore | None

    @classmethod
    def begin(
        cls, body: ResponsesRequest, earlier: list[InputItem], store: ResponseStore, warnings: list[str]
    ) -> _Answer:
        return cls(ResponseBuilder(body, warnings), [*earlier, *list_input(body)], store if body.store else None)

    async def end(self) -> list[Event]:
        """The last events; what is kept is kept before anybody reads that it is complete."""
        events = list(self.builder.end())
        if self.store is not None:
            items = [_dump_item(item) for item in self.input]
            await asyncio.to_thread(self.store.put, StoredResponse(response=self.builder.response, input=items))
        return events


def _dump_item(item: InputItem) -> dict[str, Any]:
    """An item as OpenAI lists it: texts of messages are parts."""
    found = item.model_dump(exclude_none=True)
    if item.type == "message" and isinstance(item.content, str):
        kind = "output_text" if item.role == "assistant" else "input_text"
        found["content"] = [
            {"type": kind, "text": item.content} | ({"annotations": []} if kind == "output_text" else {})
        ]
    return found if isinstance(found.get("id"), str) else found | {"id": f"msg_{uuid4().hex}"}


def _check_characters(body: ResponsesRequest) -> None:
    """Refuse what could neither be sent back nor stored."""
    try:
        body.model_dump_json()
    except PydanticSerializationError as error:
        is_deep = "depth" in str(error)
        what = "is nested too deeply" if is_deep else "holds half a surrogate pair, which is not a character"
        raise Malformed(f"The request {what}.") from error


def _to_chat(body: ResponsesRequest, earlier: list[InputItem]) -> ChatRequest:
    try:
        return build_chat_request(body, earlier)
    except ValidationError as error:
        first = list_errors(error)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InvalidOption(f"{field}: {first['msg']}.", field=field) from error


async def _open_chunks(chat: ChatRequest, request: Request, host: Host) -> AsyncIterator[ChatChunk]:
    """The chunks of the chat; of one that was answered before, those that it had."""
    with name_fields(rename_fields):
        before = await prepare(chat, request, host)

    async def chunks() -> AsyncIterator[ChatChunk]:
        if before is not None:
            for chunk in ChatProtocol().replay(before):
                yield chunk
            return
        async for chunk in stream_chunks(chat, request, host, rename_fields):
            yield chunk

    return chunks()


async def _event_lines(answer: _Answer, first: ChatChunk, rest: AsyncIterator[ChatChunk]) -> AsyncIterator[str]:
    builder = answer.builder
    for event in (*builder.begin(), *builder.feed(first)):
        yield _line(event)
    try:
        async for chunk in rest:
            for event in builder.feed(chunk):
                yield _line(event)
        last = await answer.end()
    except Exception as error:  # noqa: BLE001  # the status is sent already: the error goes into the stream
        safe = to_safe_error(error, "The stream")
        yield _line({"type": "error", "code": safe.code, "message": safe.detail, "param": safe.field})
        return
    for event in last:
        yield _line(event)


def _line(event: Event) -> str:
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"


def _drain(events: Iterator[Event]) -> None:
    """Let the builder do its work where nobody reads its events."""
    for _ in events:
        pass
