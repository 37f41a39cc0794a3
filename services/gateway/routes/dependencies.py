"""Dependencies of the gateway's own routes: context, caller and body of a request, and the job queue."""

from typing import Any

from fastapi import Request

from fovea.errors import NotReady
from services.gateway.http.bounded_json import parse_json_aside
from services.gateway.http.request_context import RequestContext
from services.gateway.policy.caller import Caller
from shared.jobs.redis_queue import RedisJobQueue


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
