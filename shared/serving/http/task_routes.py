"""Task routes: `POST /v1/<task>`, one per task of the service, from the Servables' own In and Out.

Pictures come as multipart files, base64 in JSON or a raw body; answers go out as JSON or, by `Accept`, as whatever the
model renders. Chat and completion are OpenAI's protocol and have routes of their own.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response, StreamingResponse

from fovea.api.problem import problem
from fovea.errors import FoveaError, InvalidOption
from shared import telemetry
from shared.registry import CallContext
from shared.serving.host import Host
from shared.serving.http import openapi_routes
from shared.serving.http.errors import NotAcceptable, to_safe_error
from shared.serving.http.negotiation import choose
from shared.serving.http.request_parsing import JobRequest, build_requests, parse_request
from shared.serving.http.url_images import Fetcher, fetch_pictures

_PROTOCOL_TASKS = frozenset({"chat", "complete"})  # tasks with a protocol of their own
# Bodies from this size are parsed on a thread: base64 of a photograph takes milliseconds.
_LARGE_BODY_BYTES = 256 * 1024
_STREAM_MEDIA_TYPES = ("application/x-ndjson", "text/event-stream")


def build_router(host: Host) -> APIRouter:
    """Build the task routes of a host."""
    routes = APIRouter(tags=["domain"])
    for task in host.tasks():
        if task not in _PROTOCOL_TASKS:
            routes.add_api_route(
                f"/v1/{task}", _endpoint(host, task), methods=["POST"], name=task, operation_id=task,
                openapi_extra=openapi_routes.describe_operation(host, task),
                response_class=Response, responses=openapi_routes.describe_responses(host, task),
            )  # fmt: skip
    return routes


def _endpoint(host: Host, task: str) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        run: CallContext = request.scope["fovea.run"]
        return await answer_task(host, task, request, run)

    answer.__doc__ = openapi_routes.describe_task(host, task)
    return answer


def find_task(host: Host, path: str) -> str | None:
    """The task that a path asks for; None where it is a route of another kind."""
    task = path.removeprefix("/v1/")
    return task if path.startswith("/v1/") and task in host.tasks() and task not in _PROTOCOL_TASKS else None


async def answer_task(host: Host, task: str, request: Request | JobRequest, run: CallContext) -> Response:
    """Answer a request for a task, whether it came over HTTP or as a job.

    Raises FoveaError: whatever is wrong with the request, or what its model says of it.
    """
    parsed = await parse_request(request)
    name = run.model = host.resolve(parsed.model, task)
    kind = host.servable_type(name)
    offered = ["application/json", *kind.media_types(), *(_STREAM_MEDIA_TYPES if kind.mode == "stream" else ())]
    media = run.media = choose(request.headers.get("accept"), offered)
    await host.wake(name)
    host.servable(name)  # a model that is not ready is refused before the body is parsed
    if host.settings.allow_image_urls:
        parsed = await fetch_pictures(parsed, kind.In, Fetcher(host.settings.max_body_bytes))
    large = int(request.headers.get("content-length", _LARGE_BODY_BYTES)) >= _LARGE_BODY_BYTES
    build = (parsed, kind.In, host.settings.max_images)
    calls, many = await asyncio.to_thread(build_requests, *build) if large else build_requests(*build)
    if many:
        return await _answer_many(host, name, calls, media, run)
    (call,) = calls
    if isinstance(call, FoveaError):
        raise call
    if media in _STREAM_MEDIA_TYPES:
        run.is_stream = True
        return await _stream(host.stream(name, call, run), media)
    answer = await host.predict(name, call, run)
    if media == "application/json":
        return Response(answer.model_dump_json(), media_type=media, headers={"vary": "accept"})
    picture = await asyncio.to_thread(host.servable(name).render, call, answer, media)
    if picture is None:
        raise NotAcceptable(f"This answer has no form {media}.", hint="Ask for application/json.")
    return Response(picture, media_type=media, headers={"vary": "accept"})


async def _answer_many(
    host: Host, name: str, calls: list[BaseModel | FoveaError], media: str, run: CallContext
) -> Response:
    """Answer a list of pictures: results in their order, each an answer or a problem."""
    if media != "application/json":
        raise NotAcceptable(f"Several pictures are answered as JSON only, not as {media}.", hint="Send one at a time.")
    answers = await asyncio.gather(*(_attempt(host, name, call, run) for call in calls))
    results = ",".join(_json(answer) for answer in answers)
    return Response(f'{{"results":[{results}]}}', media_type=media)


async def _attempt(host: Host, name: str, call: BaseModel | FoveaError, run: CallContext) -> BaseModel | FoveaError:
    if isinstance(call, FoveaError):
        return call
    try:
        return await host.predict(name, call, run)
    except FoveaError as error:
        return error


def _json(answer: BaseModel | FoveaError) -> str:
    if isinstance(answer, BaseModel):
        return answer.model_dump_json()
    body = problem(answer, telemetry.context().request_id)
    return json.dumps({"problem": body.model_dump(mode="json", exclude_none=True)})


async def _stream(events: AsyncGenerator[BaseModel, None], media: str) -> Response:
    """Send events as they come; what goes wrong before the first is an ordinary error."""
    try:
        first = await anext(events)
    except StopAsyncIteration as error:
        raise InvalidOption("The model streamed no event for this request.") from error
    return StreamingResponse(_lines(first, events, media), media_type=media)


async def _lines(first: BaseModel, events: AsyncGenerator[BaseModel, None], media: str) -> AsyncIterator[str]:
    form = "data: {}\n\n" if media == "text/event-stream" else "{}\n"
    async with contextlib.aclosing(events):
        yield form.format(first.model_dump_json())
        try:
            async for event in events:
                yield form.format(event.model_dump_json())
        except Exception as error:  # noqa: BLE001  # the status is sent: the error goes into the stream
            yield form.format(_json(to_safe_error(error, "The stream")))
