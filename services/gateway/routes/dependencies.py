"""Dependencies of the gateway's own routes: context, caller and body of a request, and the job queue."""

from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from starlette.responses import StreamingResponse

from fovea.errors import NotReady, QueueFull
from services.gateway.http.bounded_json import parse_json_aside
from services.gateway.http.request_context import RequestContext
from services.gateway.policy.caller import Caller
from shared.jobs.redis_queue import RedisJobQueue

BuildAnswer = Callable[[bytes, int, Mapping[str, str]], Response]
_MOST_COUNTED = 2**26  # bytes of one answer: the results of a batch may be larger than the whole budget


def get_context(request: Request) -> RequestContext:
    """The gateway's context of a request."""
    ctx: RequestContext = request.scope["fovea.request_context"]
    return ctx


def get_caller(request: Request) -> Caller:
    """The caller of a request."""
    return get_context(request).caller


def get_queue(request: Request) -> RedisJobQueue:
    """The job queue; raises NotReady where there is none."""
    return require_queue(request.app.state.gateway.queue)


def require_queue(queue: RedisJobQueue | None) -> RedisJobQueue:
    """The queue itself. Raises NotReady: there is none."""
    if queue is None:
        detail = "This gateway has no job queue."
        raise NotReady(detail, hint="Set FOVEA_REDIS_URL, or start everything with `fovea up`.")
    return queue


async def _hold_answer(request: Request) -> AsyncGenerator[BuildAnswer, None]:
    """A function that answers with bytes; they count as held memory until the caller, who may be slow, has them."""
    budget, tenant, held = request.app.state.gateway.proxy.budget, get_caller(request).tenant, list[bytes]()

    def build(body: bytes, status: int, headers: Mapping[str, str]) -> Response:
        if not budget.take(min(len(body), _MOST_COUNTED), tenant):
            detail = "There is no memory left to hold this answer."
            raise QueueFull(detail, hint="Read the answers that you have asked for, or try again soon.", retry_after=1)
        held.append(body)
        pieces = (held[0][at : at + 2**18] for at in range(0, len(body), 2**18))
        return StreamingResponse(pieces, status, {**headers, "content-length": str(len(body))})

    try:
        yield build
    finally:
        budget.release(sum(min(len(body), _MOST_COUNTED) for body in held), tenant)
        held.clear()  # what a caller that hung up left behind is not collected soon


HeldAnswer = Annotated[BuildAnswer, Depends(_hold_answer)]


async def read_whole_body(request: Request) -> bytes:
    """The body.

    Raises TooLarge: it outgrows the limit; SlowBody: it has not arrived by the deadline, or pauses too long.
    """
    ctx, proxy = get_context(request), request.app.state.gateway.proxy
    body = proxy.open_body(ctx)
    try:
        whole: bytes = await proxy.read_body(ctx, body)
    finally:
        body.release()
    return whole


async def read_json(request: Request) -> Any:
    """The body as JSON. Raises Malformed: it is none; TooLarge: it outgrows the limit, or has too many parts."""
    return await parse_json_aside(await read_whole_body(request))
