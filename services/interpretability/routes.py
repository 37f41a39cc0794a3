"""Routes under `/v1/probe/`: one per experiment, the models that can be studied, stored reports and artefacts.

The generic `POST /v1/probe` names the experiment in `model`; here the path does, so `model` names the language model.
Knows HTTP; the experiments are in `core/experiment`.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from fovea.errors import InvalidOption
from services.interpretability.core.experiment import Experiment
from services.interpretability.core.model_registry import ModelRegistry
from services.interpretability.core.report import NPZ, Report
from services.interpretability.core.result_store import TenantResults
from services.interpretability.rendering import render
from services.interpretability.rendering.html_page import POLICY
from shared.registry import Servable
from shared.serving import servable_schema
from shared.serving.host import Host
from shared.serving.http.negotiation import choose
from shared.serving.http.openapi_routes import problems
from shared.serving.http.request_parsing import ParsedRequest, build_requests, parse_request
from shared.serving.http.system_routes import host_of
from shared.serving.http.tenant import get_tenant

HostOf = Annotated[Host, Depends(host_of)]
Key = Annotated[str, Path(description="Key of a report: `manifest.report`.")]
Digest = Annotated[str, Path(description="SHA-256 of an artefact, as in its report.")]
Form = Annotated[str | None, Query(description="json, html, png, svg or npz; left out, by Accept.")]

FORMATS: Mapping[str, str] = {"json": "application/json", **render.FORMATS}

_RESPONSE_MEDIA: dict[int | str, dict[str, Any]] = {200: {"content": {media: {} for media in render.FORMATS.values()}}}

ServableTypes = Mapping[str, type[Servable[Any, Any]]]


def build_router(servables: ServableTypes) -> APIRouter:
    """Build the routes of these experiments, and those that belong to none."""
    router = APIRouter(prefix="/v1/probe", tags=["probe"])
    for name, kind in servables.items():
        if issubclass(kind, Experiment):
            router.add_api_route(
                f"/{kind.route}",
                _make_endpoint(name, kind),
                methods=["POST"],
                response_model=Report,
                responses=_RESPONSE_MEDIA | problems(400, 404, 406, 413, 422, 429, 503, 504),
                name=name,
                operation_id=f"probe_{name}",
                summary=kind.card.summary,
                openapi_extra=_openapi_extra(kind),
            )
    router.add_api_route("/models", list_models, methods=["GET"])
    router.add_api_route(
        "/reports/{key}", read_report, methods=["GET"], response_model=Report, responses=problems(404, 406)
    )
    router.add_api_route("/artefacts/{sha256}", read_artefact, methods=["GET"], responses=problems(404))
    return router


def _openapi_extra(kind: type[Experiment[Any]]) -> dict[str, Any]:
    schema = servable_schema.inline_refs(kind.In)
    media = {"type": "string", "enum": list(FORMATS), "description": "Form of the answer; left out, by Accept."}
    query = [{"name": "format", "in": "query", "required": False, "schema": media}]
    return {"parameters": query, "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _make_endpoint(name: str, kind: type[Experiment[Any]]) -> Callable[..., Any]:
    async def answer(request: Request, host: HostOf) -> Response:
        parsed = await parse_request(request)
        media_type = _requested_media_type(parsed, request)
        request.scope["fovea.model"] = name
        if (lm := parsed.options.pop("model", None)) is not None:
            parsed.options.setdefault("lm", lm)
        (spec,), _ = build_requests(parsed, kind.In, host.settings.max_images)
        if isinstance(spec, Exception):
            raise spec
        report = Report.model_validate(await host.predict(name, spec, request.scope["fovea.run"]))
        return await _render_response(report, media_type)

    answer.__doc__ = kind.card.summary
    return answer


def _requested_media_type(parsed: ParsedRequest, request: Request) -> str:
    """Media type of the answer: by `format` in the query or the body, else by Accept."""
    name = parsed.options.pop("format", None) or parsed.texts.pop("format", [None])[-1]
    parsed.texts.clear()
    return _media_type_of(name, request)


def _media_type_of(name: Any, request: Request) -> str:
    if name is None:
        return choose(request.headers.get("accept"), list(FORMATS.values()))
    if str(name) not in FORMATS:
        raise InvalidOption(f"There is no format {name!r}; there are {', '.join(FORMATS)}.", field="format")
    return FORMATS[str(name)]


async def _render_response(report: Report, media_type: str) -> Response:
    if media_type == "application/json":
        return Response(report.model_dump_json(), media_type=media_type, headers={"vary": "accept"})
    content = await asyncio.to_thread(render.render, report, media_type)
    policy = {"content-security-policy": POLICY} if media_type == "text/html" else {}
    return Response(content, media_type=media_type, headers={"vary": "accept", **policy})


def _any_experiment(host: Host) -> Experiment[Any]:
    """Any experiment: all share their models and their store."""
    return cast("Experiment[Any]", host.servable(None, "probe"))  # this service serves nothing else


def results_of(request: Request, host: Host) -> TenantResults:
    """The stored results of the caller."""
    return _any_experiment(host).store.of_tenant(get_tenant(request))


class StudiedModelInfo(BaseModel):
    """A language model that can be studied; null fields are known once it is loaded."""

    name: str
    default: bool
    loaded: bool
    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    window: int | None = None
    dtype: str | None = None
    weights_sha256: str | None = None
    tokenizer_sha256: str | None = None
    licence: str | None = None
    rows: list[str] = Field(["eager, next to the fused kernel"], description="Kernels that can return pattern rows.")


async def list_models(host: HostOf) -> list[StudiedModelInfo]:
    """List the language models that can be studied."""
    registry = _any_experiment(host).models
    return [_describe_model(registry, name) for name in registry.names()]


def _describe_model(registry: ModelRegistry, name: str) -> StudiedModelInfo:
    subject = registry.get_loaded(name)
    info = StudiedModelInfo(name=name, default=name == registry.default, loaded=subject is not None)
    if subject is None:
        return info
    config = subject.model.config
    sizes = {name: getattr(config, name) for name in ("layers", "heads", "kv_heads", "head_dim")}
    facts = {name: getattr(subject, name) for name in ("dtype", "licence", "weights_sha256", "tokenizer_sha256")}
    return info.model_copy(update={**sizes, **facts, "window": config.positions})


async def read_report(key: Key, request: Request, host: HostOf, format: Form = None) -> Response:  # noqa: A002  # as everywhere
    """Return the report of a job, complete or as far as it came before it was stopped."""
    report = await asyncio.to_thread(results_of(request, host).read_report, key)
    return await _render_response(report, _media_type_of(format, request))


async def read_artefact(sha256: Digest, request: Request, host: HostOf) -> Response:
    """Return an artefact of a report: evidence, a head plan, rated documents, arrays."""
    content = await asyncio.to_thread(results_of(request, host).read_artefact, sha256)
    if content.startswith(b"PK"):
        return Response(content, media_type=NPZ)
    media = "application/json" if content[:1] == b"{" and b"\n" not in content else "application/x-ndjson"
    return Response(content, media_type=media)
