"""`build_gateway(...)`: the gateway as an ASGI app."""

import contextlib
import importlib
import importlib.util
from collections.abc import AsyncIterator
from typing import Any, NoReturn, cast

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from fovea import plugins
from fovea.api.examples import attach_examples
from fovea.errors import BadInput, InvalidOption, MethodNotAllowed, NotFound, NotReady
from services.gateway.gateway import Gateway
from services.gateway.http import reference_page
from services.gateway.http.middleware import GatewayMiddleware
from services.gateway.routes import admin, files, health, jobs, model_list, oip_server, usage
from shared.jobs.redis_queue import RedisJobQueue
from shared.settings import Settings

_ROUTERS = tuple(
    module.router for module in (health, oip_server, model_list, jobs, files, usage, admin, reference_page)
)
ROUTES = "fovea.routes"
"""Entry-point group of plug-ins' routers; the gateway's are named `gateway` or `gateway.x`."""


def build_gateway(settings: Settings, queue: RedisJobQueue | None = None) -> FastAPI:
    """The gateway with these addresses, authentication and limits: an app whose `state.gateway` is the `Gateway`.

    Without a queue of jobs it takes the one in the Redis of `settings`, or none where there is no Redis. Its lifespan
    polls the replicas and closes what was opened.
    """
    app = FastAPI(
        title="Fovea", version="1", docs_url=None, redoc_url=None, openapi_url=None, lifespan=_lifespan,
        description="Attention-based research models, served: pictures, text, tensors, experiments and judgements.",
        exception_handlers={HTTPException: _on_http, RequestValidationError: _on_invalid}, redirect_slashes=False,
    )  # fmt: skip
    app.state.gateway = Gateway(settings, queue)
    added = plugins.load_all(ROUTES, "gateway", APIRouter, working=True).values()
    for router in (*_ROUTERS, *added):
        app.include_router(router)
    app.router.routes.extend(_console_routes(settings))
    guarded = [route.path_regex for router in added for route in router.routes if isinstance(route, Route)]
    app.add_middleware(GatewayMiddleware, gateway=app.state.gateway, guarded=guarded)
    attach_examples(app.openapi(), ["services.gateway", *plugins.packages("gateway")])
    return app


def _console_routes(settings: Settings) -> list[Any]:
    if importlib.util.find_spec("services.gateway.console") is None:
        return []
    routes: list[Any] = importlib.import_module("services.gateway.console").routes(settings)
    return routes


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    gateway: Gateway = app.state.gateway
    url, owned = gateway.settings.redis_url, None
    if gateway.queue is None and url is not None:
        owned = gateway.queue = RedisJobQueue(url, gateway.settings)
    await gateway.registry.start()
    await gateway.revocations.start()
    try:
        yield
    finally:
        await gateway.stop()
        if owned is not None:
            await owned.close()


async def _on_http(request: Request, raised: Exception) -> NoReturn:
    """Turn Starlette's errors into ours; `GatewayMiddleware` renders them."""
    error = cast("HTTPException", raised)
    path = request.url.path[:200]
    if error.status_code == 405:
        methods = _allowed_methods(request)
        raise MethodNotAllowed(f"{path} accepts {', '.join(methods)}.", allowed=methods)
    if error.status_code != 404:
        raise BadInput(str(error.detail))
    if request.method == "POST" and not request.app.state.gateway.registry.is_complete:
        detail = f"No service answers {path} yet: not all of them have announced themselves."
        raise NotReady(detail, hint="`/readyz` shows which services are ready.", retry_after=2)
    if missing := plugins.explain_missing("paths", path, path):
        raise missing
    of_triton = "Shared memory, trace and log settings are up to the operator."
    is_triton = path.startswith("/v2/") and any(part in path for part in ("sharedmemory", "/trace/", "/logging"))
    raise NotFound(f"There is no {path}.", hint=of_triton if is_triton else "`/docs` lists everything.")


def _allowed_methods(request: Request) -> tuple[str, ...]:
    """All methods of a path, which several routes may share."""
    routers = (*_ROUTERS, *plugins.load_all(ROUTES, "gateway", APIRouter, working=True).values())
    routes = [*request.app.routes, *(route for router in routers for route in router.routes)]
    known = [r for r in routes if isinstance(r, Route) and r.matches(request.scope)[0] is not Match.NONE]
    return tuple(sorted({method for route in known for method in route.methods or ()}))


async def _on_invalid(_request: Request, raised: Exception) -> NoReturn:
    """Turn a parameter of the gateway's own routes that is out of range into `InvalidOption`."""
    first = cast("RequestValidationError", raised).errors()[0]
    field = ".".join(str(part) for part in first["loc"][1:])
    raise InvalidOption(f"{field}: {first['msg']}.", field=field)
