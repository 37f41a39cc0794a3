"""Open Inference v2 over REST: health, metadata, inference with the binary extension, repository, statistics.

Errors take the protocol's form in `error_rendering`. Routes call their function with the request and the model's name,
without dependency solving, since inference lies on the hot path and reads its body raw.
"""

import asyncio
from collections.abc import Callable, Coroutine
from inspect import signature
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.responses import Response

from fovea.errors import Malformed, NotFound, NotReady, TooLarge
from shared import telemetry
from shared.registry import CallContext
from shared.rpc.oip import InferCall
from shared.rpc.oip_json import HEADER_LENGTH, EncodedBody, decode_request, encode_answer
from shared.rpc.oip_wire import InferRequest, InferResponse
from shared.serving.http.request_parsing import read_json_object
from shared.serving.http.system_routes import Name, host_of
from shared.serving.oip import metadata
from shared.serving.oip.body import build_response, read_body
from shared.serving.servable_schema import inline_refs

_OFF_LOOP_BYTES: Final = 64 * 1024  # above which values are taken one by one off the event loop only


class _DirectRoute(APIRoute):
    """A route whose function takes the request and, where the path has one, the model's name."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint = self.endpoint
        parameters = signature(endpoint).parameters.keys() & {"name"}

        async def handle(request: Request) -> Response:
            response: Response = await endpoint(request, **{key: request.path_params[key] for key in parameters})
            return response

        return handle


def _bodies() -> dict[str, Any]:
    binary = "JSON, then binary tensors; Inference-Header-Content-Length says where they begin."
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": inline_refs(InferRequest)},
                "application/octet-stream": {"schema": {"type": "string", "format": "binary", "description": binary}},
            },
        }
    }


_ERROR: Final[dict[str, Any]] = {
    "description": "The fault, in one sentence.",
    "content": {"application/json": {"schema": {"type": "object", "properties": {"error": {"type": "string"}}}}},
}

router = APIRouter(
    prefix="/v2", tags=["open inference"], route_class=_DirectRoute, responses={"4XX": _ERROR, "5XX": _ERROR}
)

# The first route that matches wins: inference comes first because it comes often, and longer paths before shorter ones
# because names of models may hold slashes (for decorators, first means nearest to the function).


@router.post("/models/{name:path}/infer", openapi_extra=_bodies(), responses={200: {"model": InferResponse}})
@router.post("/models/{name:path}/versions/{version}/infer", include_in_schema=False)
async def infer(request: Request, name: Name) -> Response:
    """Tensors in, tensors out: as JSON, or as bytes behind the JSON. Also under `/versions/{version}/infer`."""
    host, version = host_of(request), _version(request)
    await host.wake(name)
    host.find_loaded(name, version)  # an unknown or unloaded model is refused before the body is read
    request.scope["fovea.model"] = name
    head = _header_length(request)
    body = await read_body(request, head)
    with telemetry.bind(model=name):
        with telemetry.stage("pre"):
            call: InferCall = await _maybe_off_loop(
                _is_slow_to_decode(body, head), decode_request, name, version, body, head
            )
        answer = await host.answer(call, request.scope.get("fovea.run") or CallContext())
        with telemetry.stage("post"):
            plain = sum(a.nbytes for n, a in answer.outputs.items() if not call.as_bytes(n))
            encoded: EncodedBody = await _maybe_off_loop(plain > _OFF_LOOP_BYTES, encode_answer, answer, call)
    return await build_response(request, encoded)


@router.get("")
async def server_metadata(request: Request) -> Response:
    """Name, version and extensions of this server."""
    return JSONResponse(metadata.describe_server(host_of(request)))


@router.get("/health/live")
async def live(_request: Request) -> Response:
    """Whether the process lives."""
    return JSONResponse({"live": True})


@router.get("/health/ready")
async def ready(request: Request) -> Response:
    """Whether every model is loaded."""
    missing = host_of(request).missing()
    if missing:
        raise NotReady(f"Not ready: {', '.join(f'{name} ({why})' for name, why in missing.items())}.", retry_after=2)
    return JSONResponse({"ready": True})


@router.api_route("/systemsharedmemory/{rest:path}", methods=["GET", "POST"], include_in_schema=False)
@router.api_route("/cudasharedmemory/{rest:path}", methods=["GET", "POST"], include_in_schema=False)
@router.api_route("/models/{name:path}/trace/setting", methods=["GET", "POST"], include_in_schema=False)
@router.api_route("/trace/setting", methods=["GET", "POST"], include_in_schema=False)
@router.api_route("/logging", methods=["GET", "POST"], include_in_schema=False)
async def not_offered(request: Request) -> Response:
    """Refuse extensions that reach into the server's machine or its configuration."""
    detail = f"{request.url.path} is not offered: shared memory, trace and log settings stay with the operator."
    raise NotFound(detail, hint=f"Offered extensions are {', '.join(metadata.EXTENSIONS)}.")


@router.get("/models/stats")
async def all_statistics(request: Request) -> Response:
    """Counts and durations of all models."""
    return JSONResponse(metadata.collect_statistics(host_of(request)))


@router.get("/models/{name:path}/ready")
@router.get("/models/{name:path}/versions/{version}/ready", include_in_schema=False)
async def model_ready(request: Request, name: Name) -> Response:
    """Whether a model is loaded."""
    host_of(request).check_ready(name, _version(request))
    return JSONResponse({"name": name, "ready": True})


@router.get("/models/{name:path}/config")
@router.get("/models/{name:path}/versions/{version}/config", include_in_schema=False)
async def model_config(request: Request, name: Name) -> Response:
    """The part of a model's configuration that clients read."""
    return JSONResponse(await metadata.describe_config(host_of(request), name, _version(request)))


@router.get("/models/{name:path}/stats")
@router.get("/models/{name:path}/versions/{version}/stats", include_in_schema=False)
async def model_statistics(request: Request, name: Name) -> Response:
    """Counts and durations of one model."""
    return JSONResponse(metadata.collect_statistics(host_of(request), name, _version(request)))


@router.get("/models/{name:path}")
@router.get("/models/{name:path}/versions/{version}", include_in_schema=False)
async def model_metadata(request: Request, name: Name) -> Response:
    """Inputs, outputs and versions of a model."""
    return JSONResponse(await metadata.describe_model(host_of(request), name, _version(request)))


@router.post("/repository/index")
async def repository_index(request: Request) -> Response:
    """All models with their state; only the ready ones for `{"ready": true}`."""
    ready = (await _options(request)).get("ready") is True
    return JSONResponse(metadata.list_models(host_of(request), ready=ready))


@router.post("/repository/models/{name:path}/load")
async def repository_load(request: Request, name: Name) -> Response:
    """Load a model that is not loaded."""
    await metadata.load_model(host_of(request), name, (await _options(request)).get("parameters") or {})
    return JSONResponse({})


@router.post("/repository/models/{name:path}/unload")
async def repository_unload(request: Request, name: Name) -> Response:
    """Take a model out of service, after its waiting calls."""
    await host_of(request).unload(name)
    return JSONResponse({})


def _version(request: Request) -> str:
    version: str = request.path_params.get("version", "")
    return version


def _header_length(request: Request) -> int | None:
    stated = request.headers.get(HEADER_LENGTH)
    if stated is None:
        return None
    if not (stated.isascii() and stated.isdecimal() and len(stated) <= 12):
        raise Malformed(f"Inference-Header-Content-Length is {stated[:40]!r}, which is not a number of bytes.")
    return int(stated)


def _is_slow_to_decode(body: memoryview, head: int | None) -> bool:
    """Whether decoding takes values one by one, and many of them: much JSON, or a large body with BYTES in it."""
    if len(body) <= _OFF_LOOP_BYTES or head is None or head > _OFF_LOOP_BYTES:
        return len(body) > _OFF_LOOP_BYTES
    text = bytes(body[:head])
    return b"BYTES" in text or b"\\" in text  # the word may be written with escapes


async def _maybe_off_loop(slow: bool, work: Callable[..., Any], *args: Any) -> Any:
    return await asyncio.to_thread(work, *args) if slow else work(*args)


async def _options(request: Request) -> dict[str, Any]:
    """The small JSON object that repository calls may carry."""
    body = await request.body()
    if len(body) > _OFF_LOOP_BYTES:
        raise TooLarge(f"The body has more than {_OFF_LOOP_BYTES:,} bytes.", hint="Send less at a time.")
    options = read_json_object(body.strip())
    if not isinstance(options.get("parameters") or {}, dict):
        raise Malformed("The body is not a JSON object with `parameters`.")
    return options
