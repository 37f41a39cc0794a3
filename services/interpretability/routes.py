"""`/v1/probe/…`: a path of its own for every experiment, the models that can be studied, kept reports and artefacts.

The generic `POST /v1/probe` names the experiment in `model`; here the path does, so `model` names the language model.
Knows HTTP; what an experiment is, `experiment` knows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from services.interpretability.attention.head_scores import Overlap, overlap
from services.interpretability.core.experiment import Experiment
from services.interpretability.core.report import HeatMap, Report, Table, head_axes, head_name, to_matrix
from services.interpretability.rendering import render
from services.interpretability.rendering.html_page import POLICY
from shared.errors import InvalidOption, Malformed
from shared.registry import Servable
from shared.serving import servable_schema
from shared.serving.host import Host
from shared.serving.http.negotiation import choose
from shared.serving.http.openapi_routes import problems
from shared.serving.http.request_parsing import ParsedRequest, build_requests, parse_request
from shared.serving.http.system_routes import host_of

__all__ = ["build_router"]

HostOf = Annotated[Host, Depends(host_of)]

FORMATS: Mapping[str, str] = {
    "json": "application/json",
    "html": "text/html",
    "png": "image/png",
    "svg": "image/svg+xml",
    "npz": "application/x-npz",
}

_RESPONSE_MEDIA: dict[int | str, dict[str, Any]] = {200: {"content": {media: {} for media in render.MEDIA_TYPES}}}

ServableTypes = Mapping[str, type[Servable[Any, Any]]]


def build_router(servables: ServableTypes) -> APIRouter:
    """The routes of these experiments, and those that belong to none."""
    router = APIRouter(prefix="/v1/probe", tags=["probe"])
    for name, kind in servables.items():
        if issubclass(kind, Experiment):
            router.add_api_route(
                f"/{kind.route}",
                _make_endpoint(name, kind),
                methods=["POST"],
                name=name,
                operation_id=f"probe_{name}",
                summary=kind.card.summary,
                response_model=Report,
                openapi_extra=_openapi_extra(kind),
                responses=_RESPONSE_MEDIA | problems(400, 404, 406, 413, 422, 429, 503, 504),
            )
    router.add_api_route("/models", list_models, methods=["GET"])
    router.add_api_route("/circuits/compare", compare_circuits, methods=["POST"], responses=problems(400, 404, 422))
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
        asked = await parse_request(request)
        media = _requested_media_type(asked, request)
        request.scope["fovea.model"] = name
        if (lm := asked.options.pop("model", None)) is not None:
            asked.options.setdefault("lm", lm)
        (spec,), _ = build_requests(asked, kind.In, host.settings.max_images)
        if isinstance(spec, Exception):
            raise spec
        found = await host.predict(name, spec, request.scope["fovea.run"])
        assert isinstance(found, Report)  # noqa: S101  # every experiment's Out
        return await _render_response(found, media)

    answer.__doc__ = kind.card.summary
    return answer


def _requested_media_type(asked: ParsedRequest, request: Request) -> str:
    """The form of the answer: `format` in the query or the body, else by Accept."""
    told = asked.options.pop("format", None) or asked.texts.pop("format", [None])[-1]
    asked.texts.clear()
    return _media_type_of(told, request)


def _media_type_of(told: Any, request: Request) -> str:
    if told is None:
        return choose(request.headers.get("accept"), list(FORMATS.values()))
    if told not in FORMATS:
        detail = f"There is no format {told!r}; there are {', '.join(FORMATS)}."
        raise InvalidOption(detail, field="format")
    return FORMATS[str(told)]


async def _render_response(report: Report, media: str) -> Response:
    if media == "application/json":
        return Response(report.model_dump_json(), media_type=media, headers={"vary": "accept"})
    drawn = await asyncio.to_thread(render.render, report, media)
    policy = {"content-security-policy": POLICY} if media == "text/html" else {}
    return Response(drawn, media_type=media, headers={"vary": "accept", **policy})


def _any_experiment(host: Host) -> Experiment[Any]:
    """Any experiment: they share their models and their store."""
    found = host.servable(None, "probe")
    assert isinstance(found, Experiment)  # noqa: S101  # this service serves nothing else
    return found


class StudiedModelInfo(BaseModel):
    """A language model that can be studied; what is null is known once it is loaded."""

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
    rows: list[str] = Field(["eager, beside the fused kernel"], description="Kernels that can return pattern rows.")


async def list_models(host: HostOf) -> list[StudiedModelInfo]:
    """The language models that can be studied."""
    registry = _any_experiment(host).models
    return [
        _describe_model(registry.get_loaded(name), name, default=name == registry.default) for name in registry.names()
    ]


def _describe_model(subject: Any, name: str, *, default: bool) -> StudiedModelInfo:
    if subject is None:
        return StudiedModelInfo(name=name, default=default, loaded=False)
    config = subject.model.config
    return StudiedModelInfo(
        name=name,
        default=default,
        loaded=True,
        layers=config.layers,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        window=config.positions,
        dtype=subject.dtype,
        licence=subject.licence,
        weights_sha256=subject.weights_sha256,
        tokenizer_sha256=subject.tokenizer_sha256,
    )


async def read_report(key: str, request: Request, host: HostOf, format: str | None = None) -> Response:  # noqa: A002  # as everywhere
    """A report that a job made, whole or as far as it came before it was stopped."""
    return await _render_response(_any_experiment(host).store.read_report(key), _media_type_of(format, request))


async def read_artefact(sha256: str, host: HostOf) -> Response:
    """An artefact of a report: evidence, a head plan, rated documents."""
    text = _any_experiment(host).store.read_artefact(sha256)
    media = "application/json" if text[:1] == "{" and "\n" not in text else "application/x-ndjson"
    return Response(text, media_type=media)


class CompareRequest(BaseModel):
    """Two circuits: whole reports, or the keys under which they are kept."""

    model_config = ConfigDict(extra="forbid")

    first: str | dict[str, Any] = Field(description="A report of circuits, or the key of a kept one.")
    second: str | dict[str, Any] = Field(description="Another one.")
    fractions: list[float] = Field([0.01, 0.02, 0.05, 0.1], min_length=1, max_length=20, description="Of all heads.")


async def compare_circuits(body: CompareRequest, host: HostOf) -> Report:
    """How much two circuits share, at several thresholds."""
    first, second = (
        _resolve_report(side, host, name) for side, name in ((body.first, "first"), (body.second, "second"))
    )
    if bad := [fraction for fraction in body.fractions if not 0 < fraction <= 1]:
        detail = f"fractions holds {bad[0]}; shares of all heads lie above 0 and up to 1."
        raise InvalidOption(detail, field="fractions")
    ours, theirs = _effect_maps(first, "first"), _effect_maps(second, "second")
    if len(shapes := {stage.shape for stage in (*ours, *theirs)}) > 1:
        told = " and ".join("×".join(map(str, shape)) for shape in sorted(shapes))
        detail = f"The circuits are of models of different size: {told} heads."
        raise InvalidOption(detail, field="second")
    rows, grids = [], []
    for fraction in body.fractions:
        found = overlap(ours, theirs, fraction)
        grids.append(_overlap_map(found, ours[0].shape, fraction))
        told = " ".join(head_name(head) for head in found.shared)
        sizes: list[Any] = [len(found.first), len(found.second), len(found.shared)]
        rows.append([fraction, *sizes, found.jaccard, found.coefficient, found.share, told])
    columns = ["fraction", "first", "second", "shared", "jaccard", "of the smaller", "of the first", "heads"]
    return Report(
        title="Overlap of two circuits",
        warnings=[w for r in (first, second) for w in r.warnings if "not solved" in w],
        tables=[Table(name="overlap", columns=columns, rows=rows, caption="Per stage the top fraction, united.")],
        grids=grids,
    )


def _overlap_map(found: Overlap, shape: tuple[int, ...], fraction: float) -> HeatMap:
    """Both circuits on one map of all heads."""
    values = np.zeros(shape)
    for heads, value in ((found.first, 0.5), (found.second, -0.5), (found.shared, 1.0)):
        for head in heads:
            values[head] = value
    return HeatMap(
        name=f"top {fraction:.0%}",
        values=to_matrix(values),
        **head_axes(*shape),
        scale="diverging",
        caption="Heads of both circuits: 1 is in both, 0.5 in the first only, −0.5 in the second only.",
    )


def _resolve_report(side: str | dict[str, Any], host: Host, field: str) -> Report:
    if isinstance(side, str):
        return _any_experiment(host).store.read_report(side)
    try:
        return Report.model_validate(side)
    except ValueError as error:
        detail = f"{field} is no report."
        raise Malformed(detail, field=field) from error


def _effect_maps(report: Report, field: str) -> list[np.ndarray]:
    found = [np.array(grid.values, dtype=float) for grid in report.grids if grid.name.startswith("effect")]
    if not found:
        detail = f"{field} has no effect map: it is no report of circuits."
        raise InvalidOption(detail, field=field)
    return found
