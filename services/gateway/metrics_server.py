"""Metrics port of the gateway: `/metrics` on a port of its own, without a key.

Runs in the gateway's event loop, as the queue is asked for its counts at each scrape.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

from services.gateway.app import Gateway
from services.gateway.routes import health
from shared.settings import Settings


class _QuietServer(uvicorn.Server):
    """Uvicorn, leaving signals to the server next to it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def create_metrics_server(gateway: Gateway, settings: Settings) -> uvicorn.Server:
    """Create a server for the metrics of a gateway on `metrics_port`; it is not started."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.gateway = gateway
    app.add_api_route("/metrics", health.metrics, response_model=None)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.metrics_port,
        loop="uvloop",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=1,
    )
    return _QuietServer(config)
