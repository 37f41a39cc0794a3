"""`build_gateway(...)`: the gateway as an ASGI app, and the objects it is made of.

Knows how the pieces fit, not what any of them does.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, NoReturn, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from services.gateway.http import reference_page
from services.gateway.http.errors import MethodNotAllowed
from services.gateway.http.middleware import GatewayMiddleware
from services.gateway.http.openapi import OpenApiDocument
from services.gateway.policy.auth import KeyRing
from services.gateway.policy.rate_limits import RateLimiter
from services.gateway.proxy.http_client import UpstreamClient
from services.gateway.proxy.proxy import Proxy
from services.gateway.routes import health, jobs, metrics, model_list, oip_server
from services.gateway.routes.model_list import ModelIndex
from services.gateway.routing.replica_registry import ReplicaRegistry
from shared.errors import BadInput, InvalidOption, NotFound, NotReady
from shared.jobs.queue import JobQueue
from shared.settings import Settings

__all__ = ["Gateway", "build_gateway"]


_ROUTERS = (health.router, metrics.router, oip_server.router, model_list.router, jobs.router, reference_page.router)


@dataclass(slots=True)
class Gateway:
    """Everything that one gateway process holds."""

    settings: Settings
    fleet: ReplicaRegistry
    client: UpstreamClient
    proxy: Proxy
    keys: KeyRing
    limits: RateLimiter
    models: ModelIndex
    document: OpenApiDocument
    queue: JobQueue | None

    @classmethod
    def of(cls, settings: Settings, queue: JobQueue | None) -> Gateway:
        """Put one together; nothing is opened yet."""
        fleet, client = ReplicaRegistry(settings), UpstreamClient()
        return cls(
            settings=settings,
            fleet=fleet,
            client=client,
            proxy=Proxy(settings, fleet, client),
            keys=KeyRing(settings.keys_path),
            limits=RateLimiter(settings),
            models=ModelIndex(fleet, client),
            document=OpenApiDocument(fleet, client),
            queue=queue,
        )

    async def stop(self) -> None:
        """Hang up everywhere."""
        await self.fleet.stop()
        await self.client.stop()
        await self.limits.stop()


def build_gateway(settings: Settings, queue: JobQueue | None = None) -> FastAPI:
    """The gateway.

    Args:
        settings: Where it listens, whom it serves, what it stands on.
        queue: The job queue; left out, the one in the Redis of `settings`, or none where there is no Redis.

    Returns:
        An app whose `state.gateway` is the `Gateway`. Its lifespan watches the replicas and closes what was opened.
    """
    app = FastAPI(
        title="Fovea",
        version="1",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=_lifespan,
        description="Attention-based research models, served: pictures, text, tensors, experiments and judgements.",
        exception_handlers={HTTPException: _on_http, RequestValidationError: _on_invalid},
        redirect_slashes=False,
    )
    app.state.gateway = Gateway.of(settings, queue)
    for router in _ROUTERS:
        app.include_router(router)
    app.router.routes.extend(_console(settings))
    app.add_middleware(GatewayMiddleware, staff=app.state.gateway)
    return app


def _console(settings: Settings) -> list[Any]:
    """The console's pages, where it is installed."""
    if importlib.util.find_spec("services.gateway.console") is None:
        return []
    routes: list[Any] = importlib.import_module("services.gateway.console").routes(settings)
    return routes


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    gateway: Gateway = app.state.gateway
    own = gateway.queue is None and gateway.settings.redis_url is not None
    if own:
        # Imported here: a gateway without Redis needs no queue library.
        queue = importlib.import_module("shared.jobs.redis_queue").RedisJobQueue
        gateway.queue = queue(gateway.settings.redis_url, gateway.settings)
    await gateway.fleet.start()
    try:
        yield
    finally:
        await gateway.stop()
        if own and gateway.queue is not None:
            await gateway.queue.close()  # type: ignore[attr-defined]  # RedisJobQueue has it, the contract needs none


async def _on_http(request: Request, raised: Exception) -> NoReturn:
    """Starlette's own refusals in our words; `GatewayMiddleware` renders them."""
    error = cast("HTTPException", raised)
    fleet = request.app.state.gateway.fleet
    path = request.url.path[:200]
    if error.status_code == 405:
        raise MethodNotAllowed(path, _methods(request))
    if error.status_code != 404:
        raise BadInput(str(error.detail))
    if request.method == "POST" and not fleet.settled:
        detail = f"Nobody serves {path} yet: not every service has announced itself."
        raise NotReady(detail, hint="`/readyz` says who is ready.", retry_after=2)
    hint = f"Services answer: {fleet.routing.listing()}. `/docs` lists everything."
    raise NotFound(f"There is no {path}.", hint=hint)


def _methods(request: Request) -> tuple[str, ...]:
    """All methods of a path; several routes may share it."""
    routes = [*request.app.routes, *(route for router in _ROUTERS for route in router.routes)]
    known = [r for r in routes if isinstance(r, Route) and r.matches(request.scope)[0] is not Match.NONE]
    return tuple(sorted({method for route in known for method in route.methods or ()}))


async def _on_invalid(_request: Request, raised: Exception) -> NoReturn:
    """A parameter of our own routes that is out of range."""
    first = cast("RequestValidationError", raised).errors()[0]
    field = ".".join(str(part) for part in first["loc"][1:])
    raise InvalidOption(f"{field}: {first['msg']}.", field=field)
