"""`/v1/documents`: texts that a landmark model reads once. Knows HTTP; what is done, `documents` knows."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request

from services.llm_longctx.api.model_lookup import model_of
from services.llm_longctx.serving.adapters.landmark import LandmarkAdapter
from services.llm_longctx.state.document_service import Documents
from services.llm_longctx.state.redis_stores import stores_of, tenant_of
from shared.api.replica import EFFECTFUL
from shared.api.sessions import Deleted, DocumentInfo, DocumentList, DocumentRequest, DocumentText
from shared.api.text import OpenAIError
from shared.errors import NotFound, NotReady
from shared.serving.host import Host
from shared.serving.http.system_routes import host_of

__all__ = ["router"]

_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": OpenAIError, "description": "The document can't be read as it is, or is not there."},
    "5XX": {"model": OpenAIError, "description": "Redis is away, or our fault."},
}
_FORM = {"x-error-form": "openai"}
_EFFECTFUL_FORM = {**_FORM, **EFFECTFUL}

router = APIRouter(prefix="/v1/documents", tags=["documents"], responses=_ERRORS)

HostOf = Annotated[Host, Depends(host_of)]


def documents_of(request: Request) -> Documents:
    """The caller's documents."""
    return Documents(stores_of(request).documents, tenant_of(request))


DocumentsOf = Annotated[Documents, Depends(documents_of)]


@router.post("", openapi_extra=_EFFECTFUL_FORM)
async def add(body: DocumentRequest, request: Request, host: HostOf, documents: DocumentsOf) -> DocumentInfo:
    """Read a text once; requests with `document_id` begin behind it."""
    return await documents.add(body, _voice(host, body.model, request), request.scope["fovea.run"])


@router.get("", openapi_extra=_FORM)
async def recent(
    documents: DocumentsOf, limit: Annotated[int, Query(ge=1, le=1000, description="At most so many.")] = 100
) -> DocumentList:
    """The caller's documents, newest first."""
    return DocumentList(data=await documents.recent(limit))


@router.get("/{document_id}", openapi_extra=_FORM)
async def get(document_id: str, documents: DocumentsOf) -> DocumentText:
    """A document with its text."""
    return await documents.get(document_id)


@router.delete("/{document_id}", openapi_extra=_FORM)
async def delete(document_id: str, request: Request, host: HostOf, documents: DocumentsOf) -> Deleted:
    """Forget a document."""
    kept = await documents.get(document_id)
    try:
        voice = _voice(host, kept.model, request)
    except (NotFound, NotReady):  # nobody here has read it
        voice = None
    await documents.delete(document_id, voice)
    return Deleted(id=document_id, object="document")


def _voice(host: Host, name: str | None, request: Request) -> LandmarkAdapter:
    speaker = model_of(host, name, request, cites=True).speaker
    assert isinstance(speaker, LandmarkAdapter)  # noqa: S101  # models that cite speak with it
    return speaker
