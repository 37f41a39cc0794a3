"""Routes under `/v1/sessions`: memories of models between requests. Knows HTTP; `SessionService` does the work."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Path, Query, Request
from starlette.responses import Response

from fovea.api.problem import OpenAIError
from fovea.api.sessions import Deleted, RollbackRequest, Session, SessionList, SessionRequest, SurpriseTrace
from fovea_memory.routes.model_lookup import EFFECTFUL_OPENAI, OPENAI_ERRORS, HostDep, find_session_adapter
from fovea_memory.state.redis_stores import get_stores, lifespan
from fovea_memory.state.session_service import SessionService
from shared.serving.http.tenant import get_tenant

_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": OpenAIError, "description": "404 for what is not there; 409 where the session forbids it."},
    "5XX": {"model": OpenAIError, "description": "Redis is away, or an internal error."},
}
_BYTES: dict[int | str, dict[str, Any]] = {200: {"content": {"application/octet-stream": {}}}}

router = APIRouter(prefix="/v1/sessions", tags=["sessions"], responses=_ERRORS, lifespan=lifespan)

SessionId = Annotated[str, Path(description="Id of a session, from `POST /v1/sessions`.")]


def get_session_service(request: Request) -> SessionService:
    """The caller's sessions."""
    return SessionService(get_stores(request).sessions, get_tenant(request))


SessionsDep = Annotated[SessionService, Depends(get_session_service)]


@router.post("", openapi_extra=EFFECTFUL_OPENAI)
async def create(body: SessionRequest, request: Request, host: HostDep, sessions: SessionsDep) -> Session:
    """Create a session with an empty memory."""
    return await sessions.create(find_session_adapter(host, body.model, request))


@router.get("", openapi_extra=OPENAI_ERRORS)
async def recent(
    sessions: SessionsDep,
    limit: Annotated[int, Query(ge=1, le=1000, description="At most so many.")] = 100,
    after: Annotated[str | None, Query(description="Go on behind this one: the last of the page before.")] = None,
) -> SessionList:
    """The caller's sessions, newest first, a page at a time."""
    return await sessions.list_newest(limit, after)


@router.get("/{session_id}", openapi_extra=OPENAI_ERRORS)
async def get(session_id: SessionId, sessions: SessionsDep) -> Session:
    """Describe a session."""
    return await sessions.get(session_id)


@router.delete("/{session_id}", openapi_extra=OPENAI_ERRORS)
async def delete(session_id: SessionId, sessions: SessionsDep) -> Deleted:
    """Delete a session with all of its versions and answers."""
    await sessions.delete(session_id)
    return Deleted(id=session_id, object="session")


@router.post("/{session_id}/fork", openapi_extra=EFFECTFUL_OPENAI)
async def fork(session_id: SessionId, sessions: SessionsDep) -> Session:
    """Create a session that begins with this one's newest version."""
    return await sessions.fork(session_id)


@router.get("/{session_id}/export", openapi_extra=OPENAI_ERRORS, responses=_BYTES, response_class=Response)
@router.post("/{session_id}/export", openapi_extra=OPENAI_ERRORS, responses=_BYTES, response_class=Response)
async def export(session_id: SessionId, sessions: SessionsDep) -> Response:
    """Export the state of a session, as bytes that `import` takes."""
    record = await sessions.get_record(session_id)
    version = await sessions.read_version(record)
    name = f'attachment; filename="{session_id}-v{record.version}.state"'
    headers = {"content-disposition": name, "x-fovea-model": record.model, "x-fovea-state-version": str(record.version)}
    return Response(version.state, media_type="application/octet-stream", headers=headers)


@router.post("/{session_id}/import", openapi_extra=EFFECTFUL_OPENAI)
async def load(
    session_id: SessionId,
    request: Request,
    host: HostDep,
    sessions: SessionsDep,
    state: Annotated[bytes, Body(media_type="application/octet-stream", description="What `export` gave.")] = b"",
) -> Session:
    """Write an exported state as the session's next version."""
    record = await sessions.get_record(session_id)
    return await sessions.import_state(session_id, state, find_session_adapter(host, record.model, request))


@router.post("/{session_id}/rollback", openapi_extra=EFFECTFUL_OPENAI)
async def rollback(session_id: SessionId, body: RollbackRequest, sessions: SessionsDep) -> Session:
    """Write an earlier version again as the newest."""
    return await sessions.rollback(session_id, body.version)


@router.get("/{session_id}/surprise", openapi_extra=OPENAI_ERRORS)
async def surprise(
    session_id: SessionId,
    request: Request,
    host: HostDep,
    sessions: SessionsDep,
    version: Annotated[int | None, Query(ge=0, lt=2**53, description="By default the newest.")] = None,
) -> SurpriseTrace:
    """The tokens that the request behind a version memorised and forgot."""
    record = await sessions.get_record(session_id)
    return await sessions.trace_surprise(session_id, version, find_session_adapter(host, record.model, request))
