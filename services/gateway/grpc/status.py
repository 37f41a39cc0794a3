"""How the gRPC server observes its calls and ends them: metrics, span, ids, and errors as status codes."""

import math
import time
from typing import Any, Final, NoReturn

import grpc

from fovea.api.problem import oip_error
from fovea.errors import FoveaError
from shared.telemetry import (
    ERRORS,
    IN_FLIGHT,
    REQUEST_LATENCY,
    REQUESTS,
    begin_rpc_span,
    finish_rpc_span,
    fresh_context,
    observe,
)
from shared.telemetry import Context as Ids

_MAX_DETAIL_CHARS: Final = 2000
"""Characters of an error's text: it travels as a header, and those are limited to a few kilobytes."""

Context = grpc.aio.ServicerContext[Any, Any]


class ObservedCall:
    """Metrics and the span of one call; gives the call's ids, and ends it with the error that the block raises."""

    def __init__(self, service: str, method: str, context: Context) -> None:
        self._route, self._context = f"grpc {method}", context
        headers = {k: v for k, v in context.invocation_metadata() or () if isinstance(v, str)}
        self._ids = fresh_context(headers.get("x-request-id"), headers.get("traceparent"), "")
        self._span = begin_rpc_span(service, method, self._ids.parent, self._ids.request_id)

    async def __aenter__(self) -> Ids:
        self._started = time.perf_counter()
        IN_FLIGHT.labels("gateway").inc()
        self._span.__enter__()
        return self._ids

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        try:
            if isinstance(error, FoveaError):
                await abort(self._context, error)
            if isinstance(error, grpc.aio.AioRpcError):  # a replica's
                ERRORS.labels("gateway", "", error.code().name.lower()).inc()
                trailers = tuple(error.trailing_metadata() or ())
                await self._context.abort(error.code(), error.details() or "", trailers)
        finally:
            self._record(kind)

    def _record(self, kind: type[BaseException] | None) -> None:
        code: Any = self._context.code()
        status = "OK" if kind is None else code.name if isinstance(code, grpc.StatusCode) else "CANCELLED"
        IN_FLIGHT.labels("gateway").dec()
        REQUESTS.labels("gateway", "", self._route, status).inc()
        observe(REQUEST_LATENCY.labels("gateway", self._route), time.perf_counter() - self._started)
        finish_rpc_span(self._span, status)
        self._span.__exit__(None, None, None)


async def abort(context: Context, error: FoveaError) -> NoReturn:
    """End a call with an error of the gateway."""
    ERRORS.labels("gateway", "", error.code).inc()
    trailers = context.trailing_metadata() or ()
    if error.retry_after is not None:
        trailers = (*trailers, ("retry-after", str(math.ceil(error.retry_after))))
    await context.abort(grpc.StatusCode[error.grpc], oip_error(error)["error"][:_MAX_DETAIL_CHARS], tuple(trailers))
