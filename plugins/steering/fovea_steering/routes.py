"""Routes: `/v1/steering-vectors`, the files of large captures under `/v1/captures`, and `/v1/sweeps`.

Knows HTTP and the host; vectors are made and sweeps run in modules of their own.
"""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.responses import Response

from fovea.api.replica import EFFECTFUL
from fovea.api.sessions import Deleted
from fovea.api.steering import SteeringVector, SteeringVectorDeleted, SteeringVectorList, SteeringVectorRequest
from fovea.api.sweeps import Sweep, SweepRequest
from fovea.errors import InvalidOption
from fovea_steering.capture_store import CaptureStore
from fovea_steering.inside_requests import SCOPE
from fovea_steering.make_vectors import make_vector
from fovea_steering.sweeps import run_sweep
from fovea_steering.vector_store import VectorStore
from services.llm_longctx.api.model_lookup import find_model, find_served_model
from services.llm_longctx.api.openai import ERROR_RESPONSES, OPENAI_ERRORS
from services.llm_longctx.serving.adapters.decoder import DecoderAdapter
from shared.registry import CallContext
from shared.serving.host import Host
from shared.serving.http.system_routes import host_of
from shared.serving.http.tenant import tenant_store

router = APIRouter(tags=["steering"], responses=ERROR_RESPONSES)

VectorName = Annotated[str, Path(description="Name of a stored steering vector.")]
CaptureId = Annotated[str, Path(description="Id at the end of the `url` of a large capture.")]
HostDep = Annotated[Host, Depends(host_of)]


def get_vectors(request: Request) -> VectorStore:
    """The caller's steering vectors.

    Raises:
        PermissionDenied: The caller's key lacks the scope.
    """
    _call_of(request).require_scope(SCOPE, "Steering")
    return VectorStore(tenant_store(request))


def get_captures(request: Request) -> CaptureStore:
    """The caller's captures.

    Raises:
        PermissionDenied: The caller's key lacks the scope.
    """
    _call_of(request).require_scope(SCOPE, "Captures")
    return CaptureStore(tenant_store(request))


VectorsDep = Annotated[VectorStore, Depends(get_vectors)]
CapturesDep = Annotated[CaptureStore, Depends(get_captures)]


@router.post("/v1/steering-vectors", openapi_extra={**OPENAI_ERRORS, **EFFECTFUL})
async def create(body: SteeringVectorRequest, request: Request, host: HostDep, vectors: VectorsDep) -> SteeringVector:
    """Compute a vector from contrasting prompts and store it as the next version of its name."""
    adapter = find_served_model(host, body.model, request).adapter
    if not isinstance(adapter, DecoderAdapter):
        raise InvalidOption(f"The model {adapter.name!r} can't be steered: it has no named activations.", field="model")
    run = _call_of(request)
    run.audit = {"act": "steering vector made", "model": adapter.name, "vector": body.name}
    return await host.aside.do(adapter.name, lambda run: vectors.add(*make_vector(body, adapter, run)), run)


@router.get("/v1/steering-vectors", openapi_extra=OPENAI_ERRORS)
async def list_all(vectors: VectorsDep) -> SteeringVectorList:
    """The caller's vectors, newest first."""
    return SteeringVectorList(data=await asyncio.to_thread(vectors.list_vectors))


@router.get("/v1/steering-vectors/{name}", openapi_extra=OPENAI_ERRORS)
async def get(
    name: VectorName,
    vectors: VectorsDep,
    values: Annotated[bool, Query(description="Whether the numbers are part of the answer.")] = False,
) -> SteeringVector:
    """One vector: `name@version`, or the newest version of `name`."""
    facts = await asyncio.to_thread(vectors.get, name)
    if values:
        directions = await asyncio.to_thread(vectors.read, facts)
        layers = [one.model_copy(update={"values": directions[one.layer].tolist()}) for one in facts.layers]
        facts = facts.model_copy(update={"layers": layers})
    return facts


@router.delete("/v1/steering-vectors/{name}", openapi_extra=OPENAI_ERRORS)
async def delete(name: VectorName, request: Request, vectors: VectorsDep) -> SteeringVectorDeleted:
    """Delete `name@version`, or every version of `name`."""
    versions = await asyncio.to_thread(vectors.delete, name)
    _call_of(request).audit = {"act": "steering vector deleted", "vector": name}
    return SteeringVectorDeleted(id=name, versions=versions)


@router.get(
    "/v1/captures/{capture_id}",
    openapi_extra=OPENAI_ERRORS,
    response_class=Response,
    responses={200: {"content": {"application/x-npz": {}}}},
)
async def read_capture(capture_id: CaptureId, captures: CapturesDep) -> Response:
    """The arrays of a capture that was too large for its answer, as NPZ; kept for a day."""
    npz = await asyncio.to_thread(captures.read, capture_id)
    headers = {"content-disposition": f'attachment; filename="{capture_id}.npz"'}
    return Response(npz, media_type="application/x-npz", headers=headers)


@router.delete("/v1/captures/{capture_id}", openapi_extra=OPENAI_ERRORS)
async def delete_capture(capture_id: CaptureId, captures: CapturesDep) -> Deleted:
    """Delete the file of a capture."""
    await asyncio.to_thread(captures.delete, capture_id)
    return Deleted(id=capture_id, object="capture")


@router.post("/v1/sweeps", openapi_extra=OPENAI_ERRORS)
async def sweep(body: SweepRequest, request: Request, host: HostDep) -> Sweep:
    """Patch a grid of activations of one prompt, and look at named next tokens after each patch."""
    run = _call_of(request)
    run.require_scope(SCOPE, "A sweep")
    adapter = (await find_model(host, body.model, request)).adapter.of_tenant(run.tenant, body.model)
    if not isinstance(adapter, DecoderAdapter) or adapter.engine.runner.team is not None:
        detail = f"The model {adapter.name!r} can't be patched: it has no named activations in this process."
        raise InvalidOption(detail, field="model")
    run.audit = {"act": "sweep", "model": adapter.name, "site": body.site}
    return await host.aside.do(adapter.name, lambda run: run_sweep(body, adapter, run), run)


def _call_of(request: Request) -> CallContext:
    run: CallContext = request.scope["fovea.run"]
    return run
