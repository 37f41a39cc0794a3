"""OpenAI's files and batches: uploads, lists and answers, and batches of requests that run as jobs."""

import asyncio
from collections.abc import AsyncGenerator
from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from fovea.api.batches import Batch, BatchList, BatchRequest, DeletedFile, FileList, FileObject
from fovea.api.request_fields import Refusal, check_fields
from fovea.errors import InvalidOption, Malformed
from services.gateway.batches.batch_service import BatchService
from services.gateway.batches.file_store import FileStore, find_page
from services.gateway.http.openapi import PROBLEMS
from services.gateway.policy.caller import find_scope
from services.gateway.routes.dependencies import HeldAnswer, get_context, get_queue, read_json, read_whole_body
from shared.validation_errors import parse_fields

router = APIRouter(tags=["batches"], responses=PROBLEMS)

FileId = Annotated[str, Path(description="Id of a file, from `POST /v1/files` or a finished batch.")]
BatchId = Annotated[str, Path(description="Id of a batch, from `POST /v1/batches`.")]
Purpose = Annotated[str | None, Query(description="Only files of this purpose, for example `batch`.")]

_UPLOAD = {"requestBody": {"content": {"multipart/form-data": {"schema": {
    "type": "object", "required": ["file", "purpose"],
    "properties": {"file": {"type": "string", "format": "binary"}, "purpose": {"type": "string"}},
}}}}}  # fmt: skip
_CREATE = {"requestBody": {"content": {"application/json": {"schema": BatchRequest.model_json_schema()}}}}

_EXPIRES = Refusal("Files don't expire: delete them yourself")

Limit = Annotated[int, Query(ge=1, le=100, description="How many at most.")]
FilesLimit = Annotated[int, Query(ge=1, le=10_000, description="How many at most.")]
Order = Annotated[Literal["asc", "desc"], Query(description="By the time of creation.")]
After = Annotated[str | None, Query(description="Last id of the page before.")]


@router.post("/v1/files", openapi_extra=_UPLOAD)
async def upload_file(request: Request) -> FileObject:
    """Store a file of requests, one JSON object a line."""
    files, tenant = _files(request), _tenant(request)
    name, purpose, data = await parse_upload(request.headers, await read_whole_body(request))
    async with files.adding[tenant]:
        return await asyncio.to_thread(files.add, tenant, name, purpose, data)


@router.get("/v1/files")
async def list_files(
    request: Request, purpose: Purpose = None, limit: FilesLimit = 10_000, after: After = None, order: Order = "desc"
) -> FileList:
    """The caller's files, newest first unless `order` is `asc`."""
    found = await asyncio.to_thread(_files(request).list_files, _tenant(request), purpose)
    found = found[::-1] if order == "asc" else found
    begin = find_page([file.id for file in found], after)
    return FileList(data=found[begin : begin + limit], has_more=len(found) > begin + limit)


@router.get("/v1/files/{file_id}")
async def get_file(request: Request, file_id: FileId) -> FileObject:
    """One file's facts."""
    return await asyncio.to_thread(_files(request).get, _tenant(request), file_id)


@router.get("/v1/files/{file_id}/content", response_class=Response)
async def read_file(request: Request, file_id: FileId, build: HeldAnswer) -> Response:
    """One file, byte for byte."""
    data = await asyncio.to_thread(_files(request).read, _tenant(request), file_id)
    return build(data, 200, {"content-type": "application/octet-stream"})


@router.delete("/v1/files/{file_id}")
async def delete_file(request: Request, file_id: FileId) -> DeletedFile:
    """Delete a file."""
    await asyncio.to_thread(_files(request).delete, _tenant(request), file_id)
    return DeletedFile(id=file_id)


@router.post("/v1/batches", openapi_extra=_CREATE)
async def create_batch(request: Request) -> Batch:
    """Run each request of a file as a job."""
    queue, gateway = get_queue(request), request.app.state.gateway
    body = parse_fields(BatchRequest, await read_json(request))
    check_fields(body, refused={"output_expires_after": _EXPIRES})
    route = gateway.registry.routes.find(body.endpoint)
    if route is None or not body.endpoint.startswith("/v1/"):
        raise InvalidOption(f"No service answers {body.endpoint[:80]}.", field="endpoint")
    ctx = get_context(request)
    ctx.caller.require_scope(find_scope(body.endpoint))

    def audit() -> None:
        actor, target = f"{ctx.caller.tenant}/{ctx.caller.key}", f"{request.url.path} {body.input_file_id}"
        gateway.audit.write(actor, "interventions queued", target, request_id=ctx.trace.request_id)

    ctx.caller.require_scope("jobs")
    admit = partial(gateway.limits.count_many, ctx.caller)
    models = {name: one for name, one in gateway.registry.routes.models.items() if one in route.services}
    service = route.services[0]
    return await _batches(request).create(ctx.caller, body, service, queue, admit=admit, audit=audit, models=models)


@router.get("/v1/batches")
async def list_batches(request: Request, limit: Limit = 20, after: After = None) -> BatchList:
    """The caller's batches, newest first."""
    return await _batches(request).list_batches(_tenant(request), limit, after)


@router.get("/v1/batches/{batch_id}")
async def get_batch(request: Request, batch_id: BatchId) -> Batch:
    """How far a batch is; its answers are files once all are there."""
    return await _batches(request).get(_tenant(request), batch_id, get_queue(request))


@router.post("/v1/batches/{batch_id}/cancel")
async def cancel_batch(request: Request, batch_id: BatchId) -> Batch:
    """Cancel what is still running."""
    return await _batches(request).cancel(_tenant(request), batch_id, get_queue(request))


def _files(request: Request) -> FileStore:
    files: FileStore = request.app.state.gateway.files
    return files


def _batches(request: Request) -> BatchService:
    batches: BatchService = request.app.state.gateway.batches
    return batches


def _tenant(request: Request) -> str:
    caller = get_context(request).caller
    caller.require_scope("jobs")
    return caller.tenant


async def parse_upload(headers: Headers, body: bytes) -> tuple[str, str, bytes]:
    """Name, purpose and bytes of an upload. Raises Malformed: it is not a form with `file` and `purpose`."""

    async def pieces() -> AsyncGenerator[bytes, None]:
        yield body
        yield b""

    if not headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Malformed("An upload is a form (multipart/form-data) with file and purpose.", field="file")
    try:
        form = await MultiPartParser(headers, pieces(), max_files=1, max_fields=8).parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise Malformed("The form can't be read.", field="file") from error
    try:
        if field := next((name for name in form if name.startswith("expires_after")), None):
            raise InvalidOption(f"{field} is not served.", hint=f"{_EXPIRES.hint}.", field=field)
        file, purpose = form.get("file"), form.get("purpose")
        if not isinstance(file, UploadFile) or not isinstance(purpose, str):
            field = "file" if isinstance(purpose, str) else "purpose"
            raise Malformed("An upload needs file and purpose.", field=field)
        return (file.filename or "file")[:200], purpose[:40], await file.read()
    finally:
        await form.close()
