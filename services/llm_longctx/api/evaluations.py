"""Evaluations over HTTP: a needle grid as JSON or as a picture, and fidelity as JSON; long ones as jobs.

Knows HTTP and the host; what is measured, `evaluation` knows.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from services.llm_longctx.evaluation.heatmap import heat_map
from services.llm_longctx.evaluation.method_quality import (
    FidelityReport,
    FidelitySpec,
    NeedleReport,
    NeedleSpec,
    run_fidelity,
    run_needle,
)
from services.llm_longctx.serving.decoder_model import LanguageModel
from shared.errors import InvalidOption
from shared.serving.host import Host
from shared.serving.http.system_routes import host_of

__all__ = ["router"]

HostOf = Annotated[Host, Depends(host_of)]

_PICTURE: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}}}

router = APIRouter(prefix="/v1/longctx", tags=["longctx"])


@router.post("/needle", responses=_PICTURE, response_model=NeedleReport)
async def needle(body: NeedleSpec, request: Request, host: HostOf) -> Response:
    """Hide sentences in long prompts and ask for them, by length and depth; `Accept: image/png` draws the grid."""
    model = _model(host, body.model)
    report = await asyncio.to_thread(run_needle, model.speaker, body, request.scope["fovea.run"])
    if "image/png" in request.headers.get("accept", ""):
        rows, columns = [f"{d:g} %" for d in report.depths], [str(n) for n in report.lengths]
        return Response(heat_map(report.recall, rows, columns), media_type="image/png")
    return Response(report.model_dump_json(), media_type="application/json")


@router.post("/fidelity", response_model=FidelityReport)
async def fidelity(body: FidelitySpec, request: Request, host: HostOf) -> FidelityReport:
    """Run a method and dense attention on the same tokens: KL, top-1 agreement and perplexity."""
    model = _model(host, body.model)
    return await asyncio.to_thread(run_fidelity, model.speaker, body, request.scope["fovea.run"])


def _model(host: Host, name: str | None) -> LanguageModel:
    servable = host.servable(host.resolve(name, "chat"))
    if not isinstance(servable, LanguageModel):
        detail = f"{servable.card.name} has attention of its own; there is no method to compare it with."
        raise InvalidOption(detail, hint="Leave model out, or name a decoder.", field="model")
    return servable
