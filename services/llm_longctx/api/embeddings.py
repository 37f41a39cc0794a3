"""OpenAI's embeddings route: the embedding model by default, or any decoder by name. Knows HTTP and the host."""

from fastapi import APIRouter, Request

from fovea.api.embeddings import Embeddings, EmbeddingsRequest
from fovea.errors import InvalidOption
from services.llm_longctx.api.model_lookup import resolve_model
from services.llm_longctx.api.openai import ERROR_RESPONSES, OPENAI_ERRORS, HostDep
from services.llm_longctx.serving.decoder_model import DecoderModel
from services.llm_longctx.serving.embeddings import embed_request

router = APIRouter(tags=["openai"])


@router.post("/v1/embeddings", responses=ERROR_RESPONSES, openapi_extra=OPENAI_ERRORS)
async def embed(body: EmbeddingsRequest, request: Request, host: HostDep) -> Embeddings:
    """Embed texts: vectors of length 1, whose dot product says how alike the texts are."""
    task = None if body.model else "embed" if host.tasks().get("embed") else "chat"
    name = resolve_model(host, body.model, task)
    request.scope["fovea.model"], call = name, request.scope["fovea.run"]
    if name in host.tasks().get("embed", ()):
        answer = await host.predict(name, body, call)
        return Embeddings.model_validate(answer)
    model = host.servable(name)
    if not isinstance(model, DecoderModel):
        hint = f"Use {', '.join(host.tasks().get('embed', ())) or 'a decoder'}."
        raise InvalidOption(f"The model {name!r} makes no embeddings.", hint=hint, field="model")
    return await host.aside.do(name, lambda run: embed_request(name, model.embedder, body, run.check), call)
