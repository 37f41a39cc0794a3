"""Routes of steering: `/v1/steering-vectors` and the files of large captures under `/v1/captures`.

Knows HTTP and the host; vectors are computed and stored in `serving.steering`.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.responses import Response

from fovea.api.replica import EFFECTFUL
from fovea.api.sessions import Deleted
from fovea.api.steering import SteeringVector, SteeringVectorDeleted, SteeringVectorList, SteeringVectorRequest
from fovea.api.text import ChatMessage
from fovea.errors import InvalidOption, TooLarge, in_field
from services.llm_longctx.api.model_lookup import find_served_model
from services.llm_longctx.api.openai import ERROR_RESPONSES, OPENAI_ERRORS
from services.llm_longctx.serving.adapters.decoder import DecoderAdapter
from services.llm_longctx.serving.chat_template import TemplateOptions
from services.llm_longctx.serving.steering.admission import SCOPE
from services.llm_longctx.serving.steering.capture_store import CaptureStore
from services.llm_longctx.serving.steering.mean_difference import compute_directions
from services.llm_longctx.serving.steering.side_effects import PROSE, choose_layer, measure_side_effects
from services.llm_longctx.serving.steering.vector_store import VectorStore
from shared.lm.activation_names import parse_layer
from shared.registry import CallContext
from shared.serving.host import Host
from shared.serving.http.system_routes import host_of
from shared.serving.http.tenant import tenant_store

MAX_TOKENS = 32_768
"""Tokens of all prompts of one vector: they are read one after the other, next to what is served."""

router = APIRouter(tags=["steering"], responses=ERROR_RESPONSES)

VectorName = Annotated[str, Path(description="Name of a stored steering vector.")]
CaptureId = Annotated[str, Path(description="Id at the end of the `url` of a large capture.")]

_EFFECTFUL = {**OPENAI_ERRORS, **EFFECTFUL}

HostDep = Annotated[Host, Depends(host_of)]


def get_vectors(request: Request) -> VectorStore:
    """The caller's steering vectors.

    Raises:
        PermissionDenied: The caller's key lacks the scope.
    """
    _call_of(request).require_scope(SCOPE, "Steering")
    return VectorStore(tenant_store(request))


VectorsDep = Annotated[VectorStore, Depends(get_vectors)]


@router.post("/v1/steering-vectors", openapi_extra=_EFFECTFUL)
async def create(body: SteeringVectorRequest, request: Request, host: HostDep, vectors: VectorsDep) -> SteeringVector:
    """Compute a vector from contrasting prompts and store it as the next version of its name."""
    adapter = find_served_model(host, body.model, request).adapter
    if not isinstance(adapter, DecoderAdapter):
        detail = f"The model {adapter.name!r} can't be steered: it has no named activations."
        raise InvalidOption(detail, field="model")
    run = _call_of(request)
    run.audit = {"act": "steering vector made", "model": adapter.name, "vector": body.name}
    return await host.aside.do(adapter.name, lambda run: _create(body, adapter, vectors, run), run)


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
async def read_capture(capture_id: CaptureId, request: Request) -> Response:
    """The arrays of a capture that was too large for its answer, as NPZ; kept for a day."""
    _call_of(request).require_scope(SCOPE, "Captures")
    npz = await asyncio.to_thread(CaptureStore(tenant_store(request)).read, capture_id)
    headers = {"content-disposition": f'attachment; filename="{capture_id}.npz"'}
    return Response(npz, media_type="application/x-npz", headers=headers)


@router.delete("/v1/captures/{capture_id}", openapi_extra=OPENAI_ERRORS)
async def delete_capture(capture_id: CaptureId, request: Request) -> Deleted:
    """Delete the file of a capture."""
    _call_of(request).require_scope(SCOPE, "Captures")
    await asyncio.to_thread(CaptureStore(tenant_store(request)).delete, capture_id)
    return Deleted(id=capture_id, object="capture")


def _create(
    body: SteeringVectorRequest, adapter: DecoderAdapter, vectors: VectorStore, run: CallContext
) -> SteeringVector:
    model, config = adapter.engine.model, adapter.engine.model.config
    middle = range(config.layers // 3, max(2 * config.layers // 3, config.layers // 3 + 1))
    layers = sorted({parse_layer(layer, config, f"layer {layer}") for layer in body.layers or middle})
    sides = [_tokenize(adapter, prompts, name) for name, prompts in _sides(body)]
    if (total := sum(len(ids) for side in sides for ids in side)) > MAX_TOKENS:
        detail = f"The prompts have {total:,} tokens together; {MAX_TOKENS:,} are read."
        raise TooLarge(detail, hint="Send fewer or shorter ones.", field="positive")
    directions, facts = compute_directions(model, sides[0], sides[1], layers, body.tokens, run)
    best, prose = choose_layer(facts), adapter.tokenize(PROSE, "prose")[: config.positions]
    strength, side_effects = measure_side_effects(model, prose, best, directions[best.layer], run)
    vector = SteeringVector(
        id=body.name,
        name=body.name,
        version=0,
        model=adapter.name,
        weights=adapter.engine.runner.weights_sha256[:16],
        width=config.width,
        created=datetime.now(UTC),
        tokens=body.tokens,
        positive=len(body.positive),
        negative=len(body.negative),
        layers=facts,
        layer=best.layer,
        strength=strength,
        side_effects=side_effects,
    )
    return vectors.add(vector, directions)


def _sides(body: SteeringVectorRequest) -> list[tuple[str, list[str | list[ChatMessage]]]]:
    return [("positive", body.positive), ("negative", body.negative)]


def _tokenize(adapter: DecoderAdapter, prompts: list[str | list[ChatMessage]], field: str) -> list[list[int]]:
    """Token ids of texts, and of conversations under the model's template."""
    found = []
    for i, prompt in enumerate(prompts):
        name = f"{field}[{i}]"
        with in_field(name):
            if isinstance(prompt, str):
                ids = adapter.tokenize(prompt, name)
            else:
                is_open = prompt[-1].role != "assistant"
                text = adapter.render_chat(prompt, TemplateOptions(add_generation_prompt=is_open))
                ids = adapter.tokenize(text, name, special=False)
            if not ids:
                raise InvalidOption("A prompt has no tokens.")
            adapter.check_length(ids, name)
        found.append(ids)
    return found


def _call_of(request: Request) -> CallContext:
    run: CallContext = request.scope["fovea.run"]
    return run
