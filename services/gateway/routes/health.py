"""Health routes: `/livez`, `/readyz`, `/health`, `/ping`, `/version` and the gateway's own `/metrics`."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from types import SimpleNamespace
from typing import cast

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from starlette.responses import JSONResponse

from fovea.errors import FoveaError
from services.gateway.http.openapi import PROBLEMS
from services.gateway.routing.replica_registry import ReplicaRegistry
from shared.jobs.queue import Counts
from shared.telemetry import JOBS, METRICS_CONTENT_TYPE, QUEUE_DEPTH, READY_REPLICAS, render_metrics

QUEUE_COUNTS_TIMEOUT_S = 1.0
"""Longest wait for the counts of the job queue while metrics are collected."""

router = APIRouter(tags=["health"], responses=PROBLEMS)


def is_ready(registry: ReplicaRegistry) -> bool:
    """Whether every service has a ready replica, and there is a service at all."""
    return bool(registry.services) and not registry.unready_services


@router.get("/livez")
async def livez() -> dict[str, str]:
    """The process answers."""
    return {"status": "alive"}


@router.get("/ping", response_class=Response, responses={503: {"description": "Some service has no ready replica."}})
@router.get("/health", response_class=Response, responses={503: {"description": "Some service has no ready replica."}})
async def get_health(request: Request) -> Response:
    """Whether every known service has a ready replica, without a body, as vLLM's load clients ask."""
    return Response(status_code=200 if is_ready(request.app.state.gateway.registry) else 503)


@router.get("/version")
async def get_version() -> dict[str, str]:
    """The version of this product."""
    return {"version": metadata.version("fovea-platform")}


@router.get("/readyz", responses={503: {"description": "Some service has no ready replica."}})
async def readyz(request: Request) -> JSONResponse:
    """Whether every known service has a ready replica; lists those without one, the load, and whether Redis answers.

    A service on demand counts as ready also without replicas; `on_demand` marks it.
    """
    registry: ReplicaRegistry = request.app.state.gateway.registry
    services = {
        name: {
            "ready": len(registry.list_ready(name)),
            "alive": len(registry.list_alive(name)),
            "requests": request.app.state.gateway.fair.count_requests(name),
            **({"on_demand": True} if name in registry.on_demand.names else {}),
        }
        for name in registry.services
    }
    redis = {None: "none", True: "up", False: "away"}[registry.redis_up]
    all_ready = is_ready(registry)
    body = {
        "status": "ready" if all_ready else "not ready",
        "services": services,
        "not_ready": registry.unready_services,
        "reasons": {name: registry.explain_unready(name) for name in registry.unready_services},
        "redis": redis,
    }
    return JSONResponse(body, 200 if all_ready else 503)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """The gateway's own metrics in the Prometheus text format, or in OpenMetrics where it is asked for."""
    gateway = request.app.state.gateway
    counts: dict[str, Counts] = {}
    with suppress(FoveaError, TimeoutError):
        async with asyncio.timeout(QUEUE_COUNTS_TIMEOUT_S):
            for service in gateway.registry.services if gateway.queue is not None else ():
                counts[service] = await gateway.queue.counts(service)
    for gauge in (READY_REPLICAS, JOBS, QUEUE_DEPTH):
        gauge.clear()  # what is not known any more has no number: the last one would stand for ever
    for service in gateway.registry.services:
        READY_REPLICAS.labels(service).set(len(gateway.registry.list_ready(service)))
    for service, jobs in counts.items():
        QUEUE_DEPTH.labels(service, "jobs").set(jobs.waiting)
        JOBS.labels(service, "queued").set(jobs.waiting)
        JOBS.labels(service, "running").set(jobs.running)
    text, content_type = render_metrics(request.headers.get("accept", ""))
    return Response(text, headers={"content-type": content_type})


def merge_metrics(documents: Mapping[str, str]) -> bytes:
    """Merge metrics in the Prometheus text format, by replica id, into one document: families are joined by name."""
    families: dict[str, Metric] = {}
    for replica, text in documents.items():
        with suppress(ValueError):  # a foreign server behind a static upstream may write what the parser does not know
            for found in text_string_to_metric_families(text):
                family = families.setdefault(found.name, Metric(found.name, found.documentation, found.type))
                family.samples += [s._replace(labels={**s.labels, "replica": replica}) for s in found.samples]
    return generate_latest(cast("CollectorRegistry", SimpleNamespace(collect=families.values)))


@router.get("/metrics/services", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def services(request: Request) -> Response:
    """The metrics of every replica of every service in the Prometheus text format."""
    gateway = request.app.state.gateway
    replicas = [replica for name in gateway.registry.services for replica in gateway.registry.list_alive(name)]
    texts = await asyncio.gather(*(gateway.client.fetch_text(one.record.http, "/metrics") for one in replicas))
    documents = {replica.id: text for replica, text in zip(replicas, texts, strict=True) if text is not None}
    return Response(merge_metrics(documents), media_type=METRICS_CONTENT_TYPE)
