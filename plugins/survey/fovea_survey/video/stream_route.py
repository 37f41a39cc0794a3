"""`POST /v1/detect/stream`: frames go in as they are made, one line of JSON per frame comes out.

The HTTP side of `stream_pipeline`: reads the body while it answers, keeps nothing of either. By `Accept` the answer is
NDJSON, or the frames with their boxes drawn on them as `multipart/x-mixed-replace`, which browsers show as a video.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import cast

from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fovea.api.boxes import DetectedFrame, DetectIn, DetectOut
from fovea.api.problem import problem
from fovea.api.replica import ENDLESS
from fovea.errors import Cancelled, FoveaError, InvalidOption, Malformed
from fovea_survey.video.frame_parsers import FrameParser, choose_parser
from fovea_survey.video.stream_pipeline import DetectStreamOptions, detect_frames
from services.detection.boxes.drawing import draw_boxes
from shared.registry import CallContext
from shared.serving.host import Host
from shared.serving.http.errors import to_safe_error
from shared.serving.http.negotiation import choose
from shared.telemetry import DROPPED_FRAMES
from shared.validation_errors import describe_query, list_errors
from shared.vision.decode import decode
from shared.vision.draw import encode
from shared.vision.limits import DecodeBounds, platform_bounds

NDJSON, MULTIPART = "application/x-ndjson", "multipart/x-mixed-replace"

_TAKEN = ("video/x-motion-jpeg", "multipart/x-mixed-replace", "video/mp4", "video/webm")

_BOUNDARY = "frame"

router = APIRouter(tags=["domain"])


@router.post(
    "/v1/detect/stream",
    operation_id="detect_stream",
    response_class=Response,
    responses={200: {"content": {NDJSON: {}, MULTIPART: {}}, "description": "One record per frame."}},
    openapi_extra={
        **ENDLESS,
        "parameters": describe_query(DetectStreamOptions),
        "requestBody": {"required": True, "content": {kind: {} for kind in _TAKEN}},
    },
)
async def detect_stream(request: Request) -> Response:
    """Find objects in every frame of a stream: JPEGs, multipart, MP4, WebM, GIF, TIFF, WebP, animated PNG."""
    host: Host = request.app.state.host
    options = _options(request)
    name = host.resolve(options.model, "detect")
    request.scope["fovea.model"] = name
    await host.wake(name)
    best = host.servable(name).details().get("confidence")
    if options.confidence is None:
        options = options.model_copy(update={"confidence": best})
    media = choose(request.headers.get("accept"), [NDJSON, MULTIPART])
    bounds = platform_bounds(host.settings)
    parser = choose_parser(request.headers.get("content-type", ""), bounds)
    run: CallContext = request.scope["fovea.run"]
    answers = detect_frames(_read_body(request, parser), parser, options, _detector(host, name, run))
    source = _counted(answers, parser, run, name)
    first = await _first(source)
    lines = _multipart(first, source, bounds) if media == MULTIPART else _lines(first, source)
    return _LiveResponse(lines, f"{MULTIPART}; boundary={_BOUNDARY}" if media == MULTIPART else NDJSON)


def _options(request: Request) -> DetectStreamOptions:
    """The options in the address; InvalidOption if one is unknown or out of range."""
    query = request.query_params
    given = {name: query.getlist(name) if name == "classes" else query[name] for name in query}
    try:
        return DetectStreamOptions.model_validate(given)
    except ValidationError as error:
        wrong = list_errors(error)[0]
        field = str(wrong["loc"][0]) if wrong["loc"] else "query"
        raise InvalidOption(f"{field}: {wrong['msg']}.", field=field) from error


async def _read_body(request: Request, parser: FrameParser) -> AsyncIterator[bytes]:
    """The body as it arrives; a job's progress is its share, unless the body is parsed only afterwards."""
    run: CallContext = request.scope["fovea.run"]
    total, read = int(request.headers.get("content-length", 0)), 0
    async for chunk in request.stream():
        read += len(chunk)
        if total and not parser.gathering:
            run.progress(read / total, f"{read:,} of {total:,} bytes read")
        yield chunk


def _detector(host: Host, name: str, whole: CallContext) -> Callable[[DetectIn], Awaitable[DetectOut]]:
    """Detection through the host, batched with other calls; a full queue is waited for, each frame has a deadline."""

    async def detect(call: DetectIn) -> DetectOut:
        if whole.cancelled:
            raise Cancelled("The stream was cancelled.")
        run = CallContext(deadline=time.monotonic() + host.settings.request_timeout_s, tenant=whole.tenant)
        return cast("DetectOut", await host.predict_when_free(name, call, run))

    return detect


Answers = AsyncGenerator[tuple[DetectedFrame, bytes], None]


async def _counted(source: Answers, parser: FrameParser, run: CallContext, model: str) -> Answers:
    """The answers; a job's progress is the share of frames with an answer; metrics count those that were dropped."""
    async with contextlib.aclosing(source):
        async for answer, data in source:
            DROPPED_FRAMES.labels("detection", model).inc(answer.dropped)
            yield answer, data
            if parser.frames:
                done = min(answer.frame + 1, parser.frames)
                run.progress(done / parser.frames, f"frame {done:,} of {parser.frames:,}")


async def _first(source: Answers) -> tuple[DetectedFrame, bytes]:
    """The first answer: what goes wrong before it is an ordinary error, also that there is no frame."""
    try:
        return await anext(source)
    except StopAsyncIteration as error:
        raise Malformed("The stream held no frame.", field="body") from error


async def _lines(first: tuple[DetectedFrame, bytes], source: Answers) -> AsyncIterator[bytes]:
    """NDJSON; what goes wrong after the first line is the last one."""
    yield _line(first[0])
    async with contextlib.aclosing(source):
        try:
            async for answer, _ in source:
                yield _line(answer)
        except Exception as error:  # noqa: BLE001  # the status is sent: the stream itself must say what went wrong
            fault = error if isinstance(error, FoveaError) else to_safe_error(error, "The stream")
            yield json.dumps({"problem": problem(fault).model_dump(mode="json", exclude_none=True)}).encode() + b"\n"


def _line(answer: DetectedFrame) -> bytes:
    return answer.model_dump_json(exclude_none=True).encode() + b"\n"


async def _multipart(first: tuple[DetectedFrame, bytes], source: Answers, bounds: DecodeBounds) -> AsyncIterator[bytes]:
    """The frames as JPEGs with their boxes; those that can't be read are left out."""
    async with contextlib.aclosing(source):
        answer, data = first
        while True:
            if answer.problem is None:
                picture = await asyncio.to_thread(_picture, answer, data, bounds)
                head = f"--{_BOUNDARY}\r\ncontent-type: image/jpeg\r\ncontent-length: {len(picture)}\r\n\r\n"
                yield head.encode() + picture + b"\r\n"
            try:
                answer, data = await anext(source)
            except (StopAsyncIteration, FoveaError):
                break
    yield f"--{_BOUNDARY}--\r\n".encode()


def _picture(answer: DetectedFrame, data: bytes, bounds: DecodeBounds) -> bytes:
    return encode(draw_boxes(decode(data, bounds).pixels, answer.detections), "image/jpeg")


class _LiveResponse(Response):
    """An answer that is sent while the body is still read: unlike its relatives it never calls `receive` itself."""

    def __init__(self, pieces: AsyncIterator[bytes], media_type: str) -> None:
        self.pieces = pieces
        super().__init__(media_type=media_type, headers={"vary": "accept"})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for piece in self.pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
