"""OpenAI's embeddings route: the embedding model by default, or any decoder by name. Knows HTTP and the host."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Request

from fovea.api.embeddings import Embeddings, EmbeddingsRequest
from fovea.errors import InvalidOption, NotFound
from services.llm_longctx.api.errors import ModelNotFound
from services.llm_longctx.api.openai import ERROR_RESPONSES, OPENAI_ERRORS
from services.llm_longctx.serving.decoder_model import DecoderModel
from services.llm_longctx.serving.embeddings import embed_request
from shared.serving.host import Host
from shared.serving.http.system_routes import host_of

router = APIRouter(tags=["openai"])


@router.post("/v1/embeddings", responses=ERROR_RESPONSES, openapi_extra=OPENAI_ERRORS)
async def embed(body: EmbeddingsRequest, request: Request, host: Annotated[Host, Depends(host_of)]) -> Embeddings:
    """Embed texts: vectors of length 1, whose dot product says how alike the texts are."""
    name = _resolve(host, body.model)
    request.scope["fovea.model"] = name
    if name in host.tasks().get("embed", ()):
        answer = await host.predict(name, body, request.scope["fovea.run"])
        return Embeddings.model_validate(answer)
    model = host.servable(name)
    if not isinstance(model, DecoderModel):
        hint = f"Use {', '.join(host.tasks().get('embed', ())) or 'a decoder'}."
        raise InvalidOption(f"The model {name!r} makes no embeddings.", hint=hint, field="model")
    return await asyncio.to_thread(embed_request, name, model.embedder, body)


def _resolve(host: Host, name: str | None) -> str:
    task = None if name else "embed" if host.tasks().get("embed") else "chat"
    try:
        return host.resolve(name, task)
    except NotFound as error:
        raise ModelNotFound(error.detail, hint=error.hint, field="model") from error
