"""Dependencies of the gateway's own routes: the context of a request, its caller and the job queue."""

from __future__ import annotations

from fastapi import Request

from fovea.errors import NotReady
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
