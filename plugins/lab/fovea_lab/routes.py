"""Routes of evaluations: needle grids, fidelity and RULER-form comparisons, as JSON or pictures; long ones as jobs.

Knows HTTP and the host; `evaluation` measures.
"""

import asyncio
import dataclasses
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from fovea.errors import InvalidOption
from fovea_lab.heatmap import draw_heatmap
from fovea_lab.method_quality import (
    FidelityReport,
    FidelityRequest,
    NeedleReport,
    NeedleRequest,
    run_fidelity,
    run_needle,
)
from fovea_lab.ruler.plots import draw_means
from fovea_lab.ruler.report import RulerReport
from fovea_lab.ruler.samples.task import TASKS
from fovea_lab.ruler.served import run_served
from fovea_lab.ruler.spec import RulerSpec
from services.llm_longctx.serving.decoder_model import DecoderModel
from shared.registry import CallContext
from shared.serving.host import Host
from shared.serving.http.system_routes import host_of

HostDep = Annotated[Host, Depends(host_of)]

_PNG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}}}


class RulerTask(BaseModel):
    """One RULER-form task."""

    name: str
    kind: str
    metric: str
    max_new_tokens: int
    offline: bool = Field(description="Whether it needs no file; tasks that do run from the command line.")


router = APIRouter(prefix="/v1/longctx", tags=["longctx"])


@router.post("/needle", responses=_PNG, response_model=NeedleReport)
async def needle(body: NeedleRequest, request: Request, host: HostDep) -> Response:
    """Hide sentences in long prompts and ask for them, by length and depth; `Accept: image/png` draws the grid."""
    model = _find_decoder(host, body.model)
    run: CallContext = request.scope["fovea.run"]
    report = await asyncio.to_thread(run_needle, model.adapter.of_tenant(run.tenant), body, run)
    if "image/png" in request.headers.get("accept", ""):
        rows, columns = [f"{d:g} %" for d in report.depths], [str(n) for n in report.lengths]
        return Response(draw_heatmap(report.recall, rows, columns), media_type="image/png")
    return Response(report.model_dump_json(), media_type="application/json")


@router.post("/fidelity")
async def fidelity(body: FidelityRequest, request: Request, host: HostDep) -> FidelityReport:
    """Run a method and dense attention on the same tokens: KL, top-1 agreement and perplexity."""
    model = _find_decoder(host, body.model)
    run: CallContext = request.scope["fovea.run"]
    return await asyncio.to_thread(run_fidelity, model.adapter.of_tenant(run.tenant), body, run)


@router.post("/ruler", responses=_PNG, response_model=RulerReport)
async def ruler(body: RulerSpec, request: Request, host: HostDep) -> Response:
    """Compare methods at equal bytes on RULER-form tasks; `Accept: image/png` draws mean scores over bytes.

    Numbers compare methods here, never with published RULER tables.
    """
    model = _find_decoder(host, body.model)
    run: CallContext = request.scope["fovea.run"]
    report = await asyncio.to_thread(run_served, model.adapter.of_tenant(run.tenant), body, run)
    if "image/png" in request.headers.get("accept", ""):
        return Response(draw_means(report), media_type="image/png")
    return Response(report.model_dump_json(by_alias=True), media_type="application/json")


@router.get("/ruler/tasks")
async def ruler_tasks() -> list[RulerTask]:
    """List the RULER-form tasks."""
    return [RulerTask.model_validate(dataclasses.asdict(task)) for task in TASKS.values()]


def _find_decoder(host: Host, name: str | None) -> DecoderModel:
    servable = host.servable(host.resolve(name, "chat"))
    if not isinstance(servable, DecoderModel):
        detail = f"{servable.card.name} has attention of its own; there is no method to compare it with."
        raise InvalidOption(detail, hint="Leave model out, or name a decoder.", field="model")
    return servable
