"""Chunks of a chat for the routes of another protocol, whose errors name the fields of that protocol."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

from fastapi import Request

from fovea.api.text import ChatChunk, ChatRequest
from fovea.errors import FoveaError
from shared.serving.host import Host

RenameFields = Callable[[FoveaError], None]
"""Puts the protocol's names in place of the chat's into an error."""


@contextmanager
def name_fields(rename: RenameFields) -> Iterator[None]:
    """Raise the errors of the block with the protocol's names of fields."""
    try:
        yield
    except FoveaError as error:
        rename(error)
        raise


async def stream_chunks(
    chat: ChatRequest, request: Request, host: Host, rename: RenameFields
) -> AsyncIterator[ChatChunk]:
    """The chunks of a chat as the model makes them; other events are left out."""
    with name_fields(rename):
        async for event in host.stream(request.scope["fovea.model"], chat, request.scope["fovea.run"]):
            if isinstance(event, ChatChunk):
                yield event
