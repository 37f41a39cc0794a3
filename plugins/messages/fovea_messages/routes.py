"""Anthropic's routes: messages, whole or as events, and the count of their tokens. Knows HTTP and the host."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from fovea.api.problem import anthropic_error
from fovea.api.replica import AFFINE
from fovea.api.request_fields import check_fields
from fovea.api.text import ChatChunk
from fovea_messages import wire
from fovea_messages.build_chat import build_chat, find_names
from fovea_messages.message_builder import MessageBuilder
from fovea_messages.wire import AnthropicError, AnthropicMessage, Conversation, MessagesRequest, TokenCount
from services.llm_longctx.api.chat_chunks import Event, name_fields, send_events, stream_chunks
from services.llm_longctx.api.model_lookup import find_model
from services.llm_longctx.serving.chat import render_prompt
from shared import telemetry
from shared.serving.host import Host
from shared.serving.http.system_routes import host_of

router = APIRouter(tags=["anthropic"])
HostDep = Annotated[Host, Depends(host_of)]
_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": AnthropicError, "description": "The request can't be served as it is."},
    "5XX": {"model": AnthropicError, "description": "Not ready, too late, or an internal error."},
}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The message, or its events with `stream`.", "content": {"text/event-stream": {}}}, **_ERRORS
}  # fmt: skip
_FORM = {"x-error-form": "anthropic"}


@router.post("/v1/messages", response_model=AnthropicMessage, responses=_ANSWERS, openapi_extra={**_FORM, **AFFINE})
async def answer_message(body: MessagesRequest, request: Request, host: HostDep) -> Response:
    """Answer a conversation in the form of Anthropic's Messages API."""
    warnings, names = _check(body), find_names(body)
    with name_fields(names):
        chat = build_chat(body)
    request.scope["fovea.run"].is_stream = body.stream
    builder = MessageBuilder(warnings)
    events = _make_events(builder, stream_chunks(chat, request, host, names))
    if body.stream:
        return await send_events(events, lambda error: anthropic_error(error, telemetry.context().request_id))
    async for _ in events:
        pass
    text = builder.message.model_dump_json(exclude={"warnings"} if builder.message.warnings is None else None)
    return Response(text, media_type="application/json")


@router.post("/v1/messages/count_tokens", responses=_ERRORS, openapi_extra=_FORM, response_model_exclude_none=True)
async def count_tokens(body: Conversation, request: Request, host: HostDep) -> TokenCount:
    """Count the tokens of a conversation under the model's template."""
    warnings = _check(body)
    with name_fields(find_names(body)):
        chat = build_chat(body)
        adapter = (await find_model(host, chat.model, request)).adapter
        text, *_ = await asyncio.to_thread(render_prompt, adapter, chat)
        count = len(adapter.tokenize(text, "messages", special=False))
    return TokenCount(input_tokens=count, warnings=warnings or None)


def _check(body: Conversation) -> list[str]:
    """Sentences about fields that are ignored; raises as `check_fields`."""
    return check_fields(body, is_strict=body.strict, refused=wire.REFUSED, accepted=wire.ACCEPTED)


async def _make_events(builder: MessageBuilder, chunks: AsyncIterator[ChatChunk]) -> AsyncIterator[Event]:
    async for chunk in chunks:
        for event in builder.feed(chunk):
            yield event
    for event in builder.end():
        yield event
