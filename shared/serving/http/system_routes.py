"""System routes of every service: health, metrics and models."""

import asyncio
from importlib import metadata
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Path, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.responses import Response

from fovea.api.model import ModelList
from fovea.errors import NotFound
from shared import telemetry
from shared.serving.host import Host
from shared.serving.http.openapi_routes import problems
from shared.serving.http.tenant import get_tenant
from shared.sparsity import Finding, SparsityClaim, lint

router = APIRouter()

CARD_WAIT_S = 2.0  # for a model to be loaded; the console waits for 4 s, and shows what is known by then
Name = Annotated[str, Path(description="Name of the model, as in `GET /v1/models`.")]


def host_of(request: Request) -> Host:
    """The host of the app that got this request."""
    return cast("Host", request.app.state.host)


HostOf = Annotated[Host, Depends(host_of)]


@router.get("/livez", tags=["health"])
async def livez() -> dict[str, str]:
    """Whether the process lives."""
    return {"status": "alive"}


@router.get(
    "/health", tags=["health"], response_class=Response, responses={503: {"description": "Some models are not loaded."}}
)
async def get_health(host: HostOf) -> Response:
    """Whether every model is ready, without a body, as vLLM's load clients ask."""
    return Response(status_code=503 if host.missing() else 200)


@router.get("/version", tags=["health"])
async def get_version() -> dict[str, str]:
    """The version of this product."""
    return {"version": metadata.version("fovea-platform")}


@router.get("/readyz", tags=["health"], responses={503: {"description": "Some models are not loaded; says which."}})
async def readyz(host: HostOf) -> JSONResponse:
    """Whether every model is verified, loaded and warmed up."""
    status, code = ("not ready", 503) if (missing := host.missing()) else ("ready", 200)
    return JSONResponse({"status": status, "service": host.service, "missing": missing}, code)


@router.get("/metrics", tags=["health"], response_class=Response)
async def metrics(request: Request) -> Response:
    """Metrics, in Prometheus' text format, or in OpenMetrics where it is asked for."""
    text, content_type = telemetry.render_metrics(request.headers.get("accept", ""))
    return Response(text, headers={"content-type": content_type})


@router.get("/v1/models", tags=["models"], responses=problems(422, is_openai=True))
async def models(request: Request, host: HostOf, task: str | None = None) -> ModelList:
    """The models of this service, in OpenAI's form, with their Cards' facts, and the caller's variants of them."""
    entries = [*host.entries(), *await asyncio.to_thread(host.list_variants, get_tenant(request))]
    return ModelList(data=[entry for entry in entries if task in {None, entry.task}])


@router.get("/v1/models/{name:path}/example", tags=["models"], responses=problems(404, 422, 503, is_openai=True))
async def example(name: Name, host: HostOf) -> dict[str, Any]:
    """A request that can be sent as it is; its pictures are base64."""
    await host.wake(name)
    return {**host.servable(name).example().model_dump(mode="json"), "model": host.resolve(name)}  # theirs is empty


class LintedClaim(BaseModel):
    """A model's sparsity claim, and the rules that it does not meet yet."""

    claim: SparsityClaim
    findings: list[Finding] = Field(description="Rules of the claim that are open; empty when it is complete.")


@router.get("/v1/models/{name:path}/sparsity", tags=["models"], responses=problems(404, 422, is_openai=True))
async def sparsity(name: Name, host: HostOf) -> LintedClaim:
    """Sparsity of a model, its measurement and baselines, read by the lint."""
    if (claim := host.servable_type(name).card.sparsity) is None:
        hint = "Attention methods of chat models claim by themselves: GET /v1/longctx/methods."
        raise NotFound(f"The model {name!r} does not claim to be sparse.", hint=hint)
    return LintedClaim(claim=claim, findings=lint(claim))


@router.get("/v1/models/{name:path}", tags=["models"], responses=problems(404, 422, is_openai=True))
async def model(request: Request, name: Name, host: HostOf) -> dict[str, Any]:
    """Everything about one model: its Card, tensors, limits in force and the schema of its requests."""
    variants = await asyncio.to_thread(host.list_variants, get_tenant(request))
    if found := [variant.model_dump(mode="json") for variant in variants if variant.id == name]:
        return found[0]
    await asyncio.wait([asyncio.create_task(host.wake(host.resolve(name)))], timeout=CARD_WAIT_S)  # it is not cancelled
    return host.card(name)
