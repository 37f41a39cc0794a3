"""Whether the gateway lives, whether what it stands for is ready, and what it has counted."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from services.gateway.http.openapi_errors import PROBLEMS
from services.gateway.routing.replica_registry import ReplicaRegistry
from shared.errors import FoveaError
from shared.telemetry import METRICS_CONTENT_TYPE, QUEUE_DEPTH, metrics_text

__all__ = ["is_ready", "router"]

QUEUE_DEPTH_TIMEOUT_S = 1.0
"""Longest wait for the queue's depth while metrics are collected."""

router = APIRouter(tags=["health"], responses=PROBLEMS)


def is_ready(fleet: ReplicaRegistry) -> bool:
    """Whether every service has a ready replica, and there is a service at all."""
    return bool(fleet.services) and not fleet.unready


@router.get("/livez")
async def livez() -> dict[str, str]:
    """The process answers."""
    return {"status": "alive"}


@router.get("/readyz", responses={503: {"description": "Some service has no ready replica."}})
async def readyz(request: Request) -> JSONResponse:
    """Whether every known service has a ready replica; says which have not, and whether Redis answers."""
    fleet: ReplicaRegistry = request.app.state.gateway.fleet
    services = {name: {"ready": len(fleet.ready(name)), "alive": len(fleet.alive(name))} for name in fleet.services}
    redis = {None: "none", True: "up", False: "away"}[fleet.redis_up]
    good = is_ready(fleet)
    body = {
        "status": "ready" if good else "not ready",
        "services": services,
        "not_ready": fleet.unready,
        "redis": redis,
    }
    return JSONResponse(body, 200 if good else 503)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """The gateway's own numbers in the Prometheus text format."""
    gateway = request.app.state.gateway
    if gateway.queue is not None:
        for service in gateway.fleet.services:
            try:
                async with asyncio.timeout(QUEUE_DEPTH_TIMEOUT_S):
                    QUEUE_DEPTH.labels(service, "jobs").set(await gateway.queue.depth(service))
            except (FoveaError, TimeoutError):
                break
    return Response(metrics_text(), media_type=METRICS_CONTENT_TYPE)
