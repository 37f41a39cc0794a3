"""Routes under `/v1/documents`: texts that a landmark model reads once. Knows HTTP; `DocumentService` does the work."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from fovea.api.problem import OpenAIError
from fovea.api.replica import AFFINE, HOLDS_HEADER
from fovea.api.sessions import Deleted, DocumentInfo, DocumentList, DocumentRequest, DocumentText
from fovea.errors import NotFound, NotReady
from fovea_memory.routes.model_lookup import EFFECTFUL_OPENAI, OPENAI_ERRORS, HostDep, find_document_adapter
from fovea_memory.state.document_service import DocumentService
from fovea_memory.state.redis_stores import get_stores
from shared.serving.http.tenant import get_tenant

_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": OpenAIError, "description": "The document can't be read as it is, or does not exist."},
    "5XX": {"model": OpenAIError, "description": "Redis is away, or an internal error."},
}
_AFFINE = {**OPENAI_ERRORS, **AFFINE}

router = APIRouter(prefix="/v1/documents", tags=["documents"], responses=_ERRORS)

DocumentId = Annotated[str, Path(description="Id of a document, from `POST /v1/documents`.")]


def get_document_service(request: Request) -> DocumentService:
    """The caller's documents."""
    return DocumentService(get_stores(request).documents, get_tenant(request))


DocumentsDep = Annotated[DocumentService, Depends(get_document_service)]


@router.post("", openapi_extra=EFFECTFUL_OPENAI)
async def add(
    body: DocumentRequest, request: Request, response: Response, host: HostDep, documents: DocumentsDep
) -> DocumentInfo:
    """Read a text once; requests with `document_id` continue after it."""
    adapter = find_document_adapter(host, body.model, request)
    document = await documents.add(body, adapter, request.scope["fovea.run"])
    response.headers[HOLDS_HEADER] = document.id
    return document


@router.get("", openapi_extra=OPENAI_ERRORS)
async def recent(
    documents: DocumentsDep, limit: Annotated[int, Query(ge=1, le=1000, description="At most so many.")] = 100
) -> DocumentList:
    """The caller's documents, newest first."""
    return DocumentList(data=await documents.list_newest(limit))


@router.get("/{document_id}", openapi_extra=_AFFINE)
async def get(document_id: DocumentId, documents: DocumentsDep) -> DocumentText:
    """A document with its text."""
    return await documents.get(document_id)


@router.delete("/{document_id}", openapi_extra=_AFFINE)
async def delete(document_id: DocumentId, request: Request, host: HostDep, documents: DocumentsDep) -> Deleted:
    """Delete a document."""
    record = await documents.get(document_id)
    try:
        adapter = find_document_adapter(host, record.model, request)
    except (NotFound, NotReady):  # no model here has read it
        adapter = None
    await documents.delete(document_id, adapter)
    return Deleted(id=document_id, object="document")
