"""`build(...)`: the FastAPI app of a service from its Servables, the same under uvicorn, Ray Serve and in a container.

Around a `Host` it adds health, metrics, models, task routes, Open Inference v2, routers of the service and of plug-ins.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from fovea import plugins
from fovea.api.examples import attach_examples
from fovea.errors import FoveaError, NotReady
from shared.registry import Servable
from shared.registry.discovery import servables as discover
from shared.registry.imported_weights import fetch_weights
from shared.registry.measured import trained_servables
from shared.serving.host import Host
from shared.serving.http import system_routes, task_routes
from shared.serving.http.error_rendering import bound_validation, render, translate
from shared.serving.http.middleware import ServiceMiddleware
from shared.serving.oip import rest
from shared.settings import Settings
from shared.settings import settings as read_settings
from shared.storage import ObjectStore, open_object_store
from shared.telemetry import log

ROUTES = "fovea.routes"
"""Entry-point group of plug-ins' routers, by service."""

FOLDER_POLL_S = 2.0
STORE_POLL_S = 30.0
"""Seconds between two looks for new models, into a folder and into an object store."""


def build(
    service: str,
    *,
    routers: Sequence[APIRouter] = (),
    servables: Mapping[str, type[Servable[Any, Any]]] | None = None,
    settings: Settings | None = None,
) -> FastAPI:
    """The app of a service, named with `-` as in URLs and metric labels; its `state.host` is the `Host`.

    The service's own `routers` win over those of plug-ins, and these over the generic ones. Without `servables` (model
    name → class) its rooms are scanned; without `settings` they are read from the environment. The lifespan loads the
    models in the background, so that `/livez` answers at once and `/readyz` when they are there.
    """
    config = settings or read_settings()
    objects = open_object_store(config)
    fetch_weights(objects, config.weights_dir)
    known = discover(service) if servables is None else servables
    host = Host(service, {**known, **trained_servables(known, config.weights_dir)}, config)
    bound_validation()
    app = _App(
        title=f"Fovea {service}", version="1", docs_url=None, redoc_url=None, lifespan=_lifespan,
        redirect_slashes=False, telemetry={"tracing": False, "metrics": False, "logs": False},
        exception_handlers={HTTPException: _on_error, RequestValidationError: _on_error},
    )  # fmt: skip
    app.state.host = host
    app.state.settings = config
    app.state.objects = objects
    app.state.known = known
    app.state.packages = ["shared.serving", f"services.{service.replace('-', '_')}", *plugins.packages(service)]
    app.router.routes.extend(rest.router.routes)  # the hot path: first, and not behind a router of its own
    added = plugins.load_all(ROUTES, service, APIRouter, working=True).values()
    for router in (*routers, *added, system_routes.router, task_routes.build_router(host)):
        app.include_router(router)
    app.add_middleware(ServiceMiddleware, service=service, settings=config)
    return app


class _App(FastAPI):
    """FastAPI without its outer layers for errors, telemetry and body size: `ServiceMiddleware` does that, once."""

    def openapi(self) -> dict[str, Any]:
        """The document with the examples of its packages."""
        if self.openapi_schema is None:
            attach_examples(super().openapi(), self.state.packages)
        return super().openapi()

    def build_middleware_stack(self) -> ASGIApp:
        """Our middleware, the exception handlers, the router."""
        handlers: Any = self.exception_handlers
        app: ASGIApp = ExceptionMiddleware(AsyncExitStackMiddleware(self.router), handlers=handlers)
        for layer, args, more in reversed(self.user_middleware):
            app = layer(app, *args, **more)
        return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    host: Host = app.state.host
    tasks = [
        asyncio.create_task(host.start()),
        asyncio.create_task(_load_new_models(host, app.state.known, app.state.objects)),
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await host.stop()


async def _on_error(request: Request, error: Exception) -> Response:
    return render(request.scope, _find_plugin(request, error) or translate(error), getattr(error, "headers", None))


def _find_plugin(request: Request, error: Exception) -> FoveaError | None:
    """The error that names the plug-in of a route which is not here; a path may have other methods without it."""
    path = request.url.path[:200]
    name = {404: path, 405: f"{request.method} {path}"}.get(getattr(error, "status_code", 0))
    return plugins.explain_missing("paths", name, name) if name else None


async def _load_new_models(host: Host, known: Mapping[str, type[Servable[Any, Any]]], objects: ObjectStore) -> None:
    """Load each model whose manifest appears or changes, for ever; the models of before are served until then.

    `known` are the models of the service that may serve other weights; weights are published to `objects`.
    """
    folder, pause = host.settings.weights_dir, STORE_POLL_S
    if objects.under("weights").folder is not None:
        pause = FOLDER_POLL_S
    before = _list_manifests(folder)
    await host.wait_until_loaded()
    for place, reason in plugins.BROKEN.items():
        log().error("left out", place=place, reason=reason)
    while True:
        await asyncio.sleep(pause)
        with contextlib.suppress(NotReady):  # the next look finds it
            await asyncio.to_thread(fetch_weights, objects, folder)
        now = _list_manifests(folder)
        if now != before:
            found = await asyncio.to_thread(trained_servables, known, folder)
            for name in sorted(found.keys() & {name for name, age in now.items() if before.get(name) != age}):
                await host.adopt(name, found[name])
            before = now


def _list_manifests(folder: Path) -> dict[str, int]:
    """Name of each manifest → when it was written, ns."""
    found = {}
    for file in folder.glob("*.json"):
        with contextlib.suppress(OSError):
            found[file.stem] = file.stat().st_mtime_ns
    return found
