"""`build_gateway(...)`: the gateway as an ASGI app, and the objects it is made of."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from fovea import plugins
from fovea.api.examples import attach_examples
from fovea.errors import BadInput, InvalidOption, MethodNotAllowed, NotFound, NotReady, Unauthenticated
from services.gateway.batches.batch_records import BatchRecords
from services.gateway.batches.batch_service import BatchService
from services.gateway.batches.file_store import FileStore
from services.gateway.http import reference_page
from services.gateway.http.middleware import GatewayMiddleware
from services.gateway.http.openapi import OpenApiDocument
from services.gateway.mcp import server as mcp_server
from services.gateway.policy.audit_log import AuditLog
from services.gateway.policy.auth import KeyRing, read_credentials
from services.gateway.policy.bad_keys import BadKeys
from services.gateway.policy.caller import LOCAL, Caller
from services.gateway.policy.fair_queue import FairQueue
from services.gateway.policy.oidc import TokenVerifier
from services.gateway.policy.quotas import RateLimiter
from services.gateway.policy.revocation import Revocations
from services.gateway.proxy.http_client import UpstreamClient
from services.gateway.proxy.proxy import Proxy
from services.gateway.routes import admin, files, health, jobs, metrics, model_list, oip_server, usage
from services.gateway.routes.model_list import ModelIndex
from services.gateway.routing.replica_registry import ReplicaRegistry
from shared.jobs.redis_queue import RedisJobQueue
from shared.jobs.usage_ledger import UsageLedger
from shared.settings import Settings
from shared.storage import open_object_store

_ROUTERS = (
    health.router,
    metrics.router,
    oip_server.router,
    model_list.router,
    jobs.router,
    files.router,
    mcp_server.router,
    usage.router,
    admin.router,
    reference_page.router,
)
ROUTES = "fovea.routes"
"""Entry-point group of plug-ins' routers; the gateway's are named `gateway` or `gateway.x`."""


@dataclass(slots=True)
class Gateway:
    """Everything that one gateway process holds."""

    settings: Settings
    registry: ReplicaRegistry
    client: UpstreamClient
    proxy: Proxy
    keys: KeyRing
    revocations: Revocations
    bad_keys: BadKeys
    tokens: TokenVerifier
    audit: AuditLog
    limits: RateLimiter
    fair: FairQueue
    usage: UsageLedger
    models: ModelIndex
    document: OpenApiDocument
    files: FileStore
    batches: BatchService
    queue: RedisJobQueue | None

    @classmethod
    def from_settings(cls, settings: Settings, queue: RedisJobQueue | None) -> Gateway:
        """Build one; nothing is opened yet."""
        registry, client = ReplicaRegistry(settings), UpstreamClient(settings.replica_credentials)
        registry.ask = client.is_serving
        objects = open_object_store(settings)
        stored = FileStore(objects, settings.file_quota_bytes)
        keys = KeyRing(settings.keys_path)
        return cls(
            settings=settings,
            registry=registry,
            client=client,
            proxy=Proxy(settings, registry, client),
            keys=keys,
            revocations=Revocations(keys, settings.redis_url if settings.auth == "keys" else None),
            bad_keys=BadKeys(),
            tokens=TokenVerifier(settings),
            audit=AuditLog(settings.audit_path),
            limits=RateLimiter(settings),
            fair=FairQueue(settings, registry),
            usage=UsageLedger(settings.redis_url),
            models=ModelIndex(registry, client),
            document=OpenApiDocument(registry, client, keys=settings.auth == "keys"),
            files=stored,
            batches=BatchService(BatchRecords(objects), stored, settings.job_ttl_s),
            queue=queue,
        )

    async def authenticate(self, headers: Mapping[bytes, bytes], address: str) -> Caller:
        """Find the caller by the key or the token in the headers of a request from an address.

        Raises:
            Unauthenticated: There is none, or it is not valid.
            RateLimited: It is not valid, as many before it from this address.
            NotReady: The issuer of a token can't be reached.
        """
        if self.settings.auth == "insecure-local":
            return LOCAL
        credential = read_credentials(headers)
        try:
            if credential is not None and self.tokens.is_token(credential):
                return await self.tokens.authenticate(credential)
            return self.keys.authenticate(credential)
        except Unauthenticated:
            if credential is not None:
                self.bad_keys.note(address)
            raise

    async def stop(self) -> None:
        """Close all connections."""
        await self.proxy.watcher.stop()
        await self.registry.stop()
        await self.client.stop()
        await self.revocations.stop()
        await self.limits.stop()
        await self.usage.stop()


def build_gateway(settings: Settings, queue: RedisJobQueue | None = None) -> FastAPI:
    """The gateway with these addresses, authentication and limits: an app whose `state.gateway` is the `Gateway`.

    Without a queue of jobs it takes the one in the Redis of `settings`, or none where there is no Redis. Its lifespan
    polls the replicas and closes what was opened.
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
    app.state.gateway = Gateway.from_settings(settings, queue)
    for router in (*_ROUTERS, *plugins.load_all(ROUTES, "gateway").values()):
        app.include_router(router)
    app.router.routes.extend(_console_routes(settings))
    app.add_middleware(GatewayMiddleware, gateway=app.state.gateway)
    attach_examples(app.openapi(), ["services.gateway", *plugins.packages("gateway")])
    return app


def _console_routes(settings: Settings) -> list[Any]:
    """The routes of the console, where it is installed."""
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
    registry = request.app.state.gateway.registry
    path = request.url.path[:200]
    if error.status_code == 405:
        methods = _allowed_methods(request)
        raise MethodNotAllowed(f"{path} accepts {', '.join(methods)}.", allowed=methods)
    if error.status_code != 404:
        raise BadInput(str(error.detail))
    if request.method == "POST" and not registry.is_complete:
        detail = f"No service answers {path} yet: not all of them have announced themselves."
        raise NotReady(detail, hint="`/readyz` shows which services are ready.", retry_after=2)
    if missing := plugins.explain_missing("paths", path, path):
        raise missing
    raise NotFound(f"There is no {path}.", hint="`/docs` lists everything.")


def _allowed_methods(request: Request) -> tuple[str, ...]:
    """All methods of a path, which several routes may share."""
    routers = (*_ROUTERS, *plugins.load_all(ROUTES, "gateway").values())
    routes = [*request.app.routes, *(route for router in routers for route in router.routes)]
    known = [r for r in routes if isinstance(r, Route) and r.matches(request.scope)[0] is not Match.NONE]
    return tuple(sorted({method for route in known for method in route.methods or ()}))


async def _on_invalid(_request: Request, raised: Exception) -> NoReturn:
    """Turn a parameter of the gateway's own routes that is out of range into `InvalidOption`."""
    first = cast("RequestValidationError", raised).errors()[0]
    field = ".".join(str(part) for part in first["loc"][1:])
    raise InvalidOption(f"{field}: {first['msg']}.", field=field)
