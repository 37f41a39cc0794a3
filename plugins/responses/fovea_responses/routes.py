"""OpenAI's Responses routes, on the chats of the same models: whole or as events, and stored where one asks for it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Literal
from uuid import uuid4

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic_core import PydanticSerializationError
from starlette.responses import Response

from fovea.api.replica import AFFINE, HOLDS_HEADER
from fovea.api.request_fields import check_fields
from fovea.api.sessions import Deleted
from fovea.api.text import ChatChunk
from fovea.errors import Malformed, NotFound
from fovea_responses.build_chat import NAMES, build_chat, list_input
from fovea_responses.response_builder import ResponseBuilder
from fovea_responses.response_store import ResponseStore, StoredResponse
from fovea_responses.wire import InputItem, InputItemList, ResponseObject, ResponsesRequest
from services.llm_longctx.api.chat_chunks import Event, name_fields, send_events, stream_chunks
from services.llm_longctx.api.openai import ERROR_RESPONSES, OPENAI_ERRORS, HostDep
from shared.serving.http.tenant import tenant_store

router = APIRouter(tags=["openai"])

Limit = Annotated[int, Query(ge=1, le=10_000, description="How many at most.")]
Order = Annotated[Literal["asc", "desc"], Query(description="By their place in the conversation.")]
After = Annotated[str | None, Query(description="Last id of the page before.")]
ResponseId = Annotated[str, Path(description="Id of a response that was asked for with `store: true`.")]


def get_response_store(request: Request) -> ResponseStore:
    """The caller's stored responses."""
    return ResponseStore(tenant_store(request))


StoreDep = Annotated[ResponseStore, Depends(get_response_store)]


@router.post(
    "/v1/responses", responses=ERROR_RESPONSES, openapi_extra={**OPENAI_ERRORS, **AFFINE}, response_model=ResponseObject
)
async def respond(body: ResponsesRequest, request: Request, host: HostDep, store: StoreDep) -> Response:
    """Answer items with items, also after a stored response."""
    _check_characters(body)
    warnings = check_fields(body, is_strict=body.strict)
    earlier = []
    if (before := body.previous_response_id) is not None:
        earlier = (await asyncio.to_thread(store.get, before, "previous_response_id")).conversation
    with name_fields(NAMES):
        chat = build_chat(body, earlier)
    request.scope["fovea.run"].is_stream = body.stream
    builder = ResponseBuilder(body, warnings)
    holds = {HOLDS_HEADER: builder.response.id}

    def keep() -> None:
        items = [_dump_item(item) for item in (*earlier, *list_input(body))]
        store.put(StoredResponse(response=builder.response, input=items))

    events = _make_events(builder, stream_chunks(chat, request, host, NAMES), keep if body.store else None)
    if body.stream:
        return await send_events(events, builder.fail, holds)
    async for _ in events:
        pass
    return Response(builder.response.model_dump_json(), media_type="application/json", headers=holds)


@router.get("/v1/responses/{response_id}", responses=ERROR_RESPONSES, openapi_extra=OPENAI_ERRORS)
def show(response_id: ResponseId, store: StoreDep) -> ResponseObject:
    """Show a stored response."""
    return store.get(response_id).response


@router.get("/v1/responses/{response_id}/input_items", responses=ERROR_RESPONSES, openapi_extra=OPENAI_ERRORS)
def list_input_items(
    response_id: ResponseId, store: StoreDep, limit: Limit = 10_000, after: After = None, order: Order = "asc"
) -> InputItemList:
    """List what a stored response was made from: the conversation before it, oldest first unless `order` is `desc`."""
    items = store.get(response_id).input[:: -1 if order == "desc" else 1]
    begin = 0 if after is None else max((i for i, item in enumerate(items, 1) if item["id"] == after), default=0)
    if after is not None and not begin:
        raise NotFound(f"The list has no {after[:80]!r}.", hint="Give the last id of the page before.", field="after")
    page = items[begin : begin + limit]
    ids = [item["id"] for item in page] or [None]
    return InputItemList(data=page, first_id=ids[0], last_id=ids[-1], has_more=len(items) > begin + limit)


@router.delete("/v1/responses/{response_id}", responses=ERROR_RESPONSES, openapi_extra=OPENAI_ERRORS)
def delete(response_id: ResponseId, store: StoreDep) -> Deleted:
    """Delete a stored response; those that went on from it keep the conversation."""
    store.delete(response_id)
    return Deleted(id=response_id, object="response")


async def _make_events(
    builder: ResponseBuilder, chunks: AsyncIterator[ChatChunk], keep: Callable[[], None] | None
) -> AsyncIterator[Event]:
    """All events; what is kept is kept before anybody reads that it is complete."""
    async for chunk in chunks:
        for event in builder.feed(chunk):
            yield event
    last = list(builder.end())
    if keep is not None:
        await asyncio.to_thread(keep)
    for event in last:
        yield event


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
