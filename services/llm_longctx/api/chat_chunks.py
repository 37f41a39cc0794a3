"""Chats for the routes of another protocol: requests become chats, chunks become events, errors name its fields.

A protocol's names are a mapping: field of the chat → what the protocol calls it.
"""

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastapi import Request
from pydantic import ValidationError
from starlette.responses import StreamingResponse

from fovea.api.text import ChatChunk, ChatRequest
from fovea.errors import FoveaError, InvalidOption
from services.llm_longctx.api.openai import SSE_HEADERS, prepare
from services.llm_longctx.serving.chat import ChatProtocol
from shared.serving.host import Host
from shared.serving.http.errors import to_safe_error
from shared.validation_errors import list_errors

Event = dict[str, Any]
"""One event of a stream; its `type` names it."""


def read_chat(fields: Mapping[str, Any]) -> ChatRequest:
    """Make a chat of the fields that are neither None nor empty. Raises InvalidOption: one has a wrong value."""
    try:
        return ChatRequest.model_validate({name: value for name, value in fields.items() if value not in (None, [])})
    except ValidationError as error:
        first = list_errors(error)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InvalidOption(f"{field}: {first['msg']}.", field=field) from error


@contextmanager
def name_fields(names: Mapping[str, str]) -> Iterator[None]:
    """Raise the errors of the block with the protocol's names of fields."""
    try:
        yield
    except FoveaError as error:
        for theirs, ours in names.items():
            error.field = error.field and error.field.replace(theirs, ours)
            if theirs != "messages":  # a word of sentences, too
                error.detail = error.detail.replace(theirs, ours)
        raise


async def stream_chunks(
    chat: ChatRequest, request: Request, host: Host, names: Mapping[str, str]
) -> AsyncIterator[ChatChunk]:
    """The chunks of a chat as the model makes them; of one that was answered before, those that it had."""
    with name_fields(names):
        if (before := await prepare(chat, request, host)) is not None:
            for chunk in ChatProtocol().replay(before):
                yield chunk
            return
        async for event in host.stream(request.scope["fovea.model"], chat, request.scope["fovea.run"]):
            if isinstance(event, ChatChunk):
                yield event


async def send_events(
    events: AsyncIterator[Event], to_event: Callable[[FoveaError], Event], headers: Mapping[str, str] | None = None
) -> StreamingResponse:
    """Send events as they come. An error before the first is raised, a later one is sent as the last event."""
    first = await anext(events)

    async def lines() -> AsyncIterator[str]:
        yield _line(first)
        try:
            async for event in events:
                yield _line(event)
        except Exception as error:  # noqa: BLE001  # the status is sent already: the error goes into the stream
            yield _line(to_event(to_safe_error(error, "The stream")))

    return StreamingResponse(lines(), media_type="text/event-stream", headers={**SSE_HEADERS, **(headers or {})})


def _line(event: Event) -> str:
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"
