"""Whether the gateway lives, whether what it stands for is ready, and what it has counted.

Open Inference's own health and repository routes are here too: they speak for the whole fleet.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from services.gateway.documented import PROBLEMS
from services.gateway.replicas import Fleet
from shared.errors import FoveaError
from shared.telemetry import METRICS_CONTENT_TYPE, QUEUE_DEPTH, metrics_text

__all__ = ["SERVER", "ready", "repository", "router"]

SERVER = {"name": "fovea", "version": "1", "extensions": ["binary_tensor_data", "model_repository"]}
"""Server metadata of Open Inference."""

DEPTH_S = 1.0
"""Longest wait for the queue's depth while metrics are collected."""

router = APIRouter(tags=["health"], responses=PROBLEMS)


def ready(fleet: Fleet) -> bool:
    """Whether every service has a ready replica, and there is a service at all."""
    return bool(fleet.services) and not fleet.unready


async def repository(gateway: Any) -> list[dict[str, str]]:
    """The Open Inference repository index over all services."""
    index = []
    for entry in await gateway.models.listing():
        state, reason = ("READY", "") if entry.get("ready") else ("UNAVAILABLE", "not ready")
        index.append({
            "name": entry["id"], "version": str(entry.get("version", "1")), "state": state, "reason": reason,
        })  # fmt: skip
    return index


@router.get("/livez")
async def livez() -> dict[str, str]:
    """The process answers."""
    return {"status": "alive"}


@router.get("/readyz", responses={503: {"description": "Some service has no ready replica."}})
async def readyz(request: Request) -> JSONResponse:
    """Whether every known service has a ready replica; says which have not, and whether Redis answers."""
    fleet: Fleet = request.app.state.gateway.fleet
    services = {
        name: {"ready": len(fleet.ready(name)), "alive": len(fleet.alive(name))} for name in fleet.services
    }  # fmt: skip
    redis = {None: "none", True: "up", False: "away"}[fleet.redis_up]
    good = ready(fleet)
    body = {
        "status": "ready" if good else "not ready", "services": services, "not_ready": fleet.unready, "redis": redis,
    }  # fmt: skip
    return JSONResponse(body, 200 if good else 503)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """The gateway's own numbers in the Prometheus text format."""
    gateway = request.app.state.gateway
    if gateway.queue is not None:
        for service in gateway.fleet.services:
            try:
                async with asyncio.timeout(DEPTH_S):
                    QUEUE_DEPTH.labels(service, "jobs").set(await gateway.queue.depth(service))
            except (FoveaError, TimeoutError):
                break
    return Response(metrics_text(), media_type=METRICS_CONTENT_TYPE)


@router.get("/v2", tags=["open inference"])
async def server() -> dict[str, Any]:
    """Server metadata."""
    return SERVER


@router.get("/v2/health/live", tags=["open inference"])
async def server_live() -> dict[str, bool]:
    """The gateway lives."""
    return {"live": True}


@router.get("/v2/health/ready", tags=["open inference"], responses={400: {"description": "Not ready."}})
async def server_ready(request: Request) -> JSONResponse:
    """Every service has a ready replica."""
    good = ready(request.app.state.gateway.fleet)
    return JSONResponse({"ready": good}, 200 if good else 400)


@router.post("/v2/repository/index", tags=["open inference"])
async def repository_index(request: Request) -> list[dict[str, str]]:
    """All models of all services."""
    return await repository(request.app.state.gateway)
