"""`/v1/sessions`: what models remember between requests. Knows HTTP; what is done, `sessions` knows."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Query, Request
from starlette.responses import Response

from services.llm_longctx.api.model_lookup import model_of
from services.llm_longctx.serving.adapters.titans import TitansAdapter
from services.llm_longctx.state.redis_stores import lifespan, stores_of, tenant_of
from services.llm_longctx.state.session_service import Sessions
from shared.api.replica import EFFECTFUL
from shared.api.sessions import Deleted, RollbackRequest, Session, SessionList, SessionRequest, SurpriseTrace
from shared.api.text import OpenAIError
from shared.serving.host import Host
from shared.serving.http.system_routes import host_of

__all__ = ["router"]

_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": OpenAIError, "description": "404 for what is not there; 409 where the session forbids it."},
    "5XX": {"model": OpenAIError, "description": "Redis is away, or our fault."},
}
_FORM = {"x-error-form": "openai"}
_EFFECTFUL_FORM = {**_FORM, **EFFECTFUL}
_BYTES: dict[int | str, dict[str, Any]] = {200: {"content": {"application/octet-stream": {}}}}

router = APIRouter(prefix="/v1/sessions", tags=["sessions"], responses=_ERRORS, lifespan=lifespan)

HostOf = Annotated[Host, Depends(host_of)]


def sessions_of(request: Request) -> Sessions:
    """The caller's sessions."""
    return Sessions(stores_of(request).sessions, tenant_of(request))


SessionsOf = Annotated[Sessions, Depends(sessions_of)]


@router.post("", openapi_extra=_EFFECTFUL_FORM)
async def create(body: SessionRequest, request: Request, host: HostOf, sessions: SessionsOf) -> Session:
    """Open a session that remembers nothing yet."""
    return await sessions.create(_voice(host, body.model, request))


@router.get("", openapi_extra=_FORM)
async def recent(
    sessions: SessionsOf,
    limit: Annotated[int, Query(ge=1, le=1000, description="At most so many.")] = 100,
    after: Annotated[str | None, Query(description="Go on behind this one: the last of the page before.")] = None,
) -> SessionList:
    """The caller's sessions, newest first, a page at a time."""
    return await sessions.recent(limit, after)


@router.get("/{session_id}", openapi_extra=_FORM)
async def get(session_id: str, sessions: SessionsOf) -> Session:
    """What is known of a session."""
    return await sessions.get(session_id)


@router.delete("/{session_id}", openapi_extra=_FORM)
async def delete(session_id: str, sessions: SessionsOf) -> Deleted:
    """Forget a session, with all of its versions and answers."""
    await sessions.delete(session_id)
    return Deleted(id=session_id, object="session")


@router.post("/{session_id}/fork", openapi_extra=_EFFECTFUL_FORM)
async def fork(session_id: str, sessions: SessionsOf) -> Session:
    """A session that goes its own way from here."""
    return await sessions.fork(session_id)


@router.get("/{session_id}/export", openapi_extra=_FORM, responses=_BYTES, response_class=Response)
@router.post("/{session_id}/export", openapi_extra=_FORM, responses=_BYTES, response_class=Response)
async def export(session_id: str, sessions: SessionsOf) -> Response:
    """What the session remembers, as bytes that `import` takes."""
    head = await sessions.head(session_id)
    version = await sessions.version(head)
    name = f'attachment; filename="{session_id}-v{head.version}.state"'
    headers = {"content-disposition": name, "x-fovea-model": head.model, "x-fovea-state-version": str(head.version)}
    return Response(version.state, media_type="application/octet-stream", headers=headers)


@router.post("/{session_id}/import", openapi_extra=_EFFECTFUL_FORM)
async def load(
    session_id: str,
    state: Annotated[bytes, Body(media_type="application/octet-stream", description="What `export` gave.")],
    request: Request,
    host: HostOf,
    sessions: SessionsOf,
) -> Session:
    """Let the session go on from an exported state, as its next version."""
    head = await sessions.head(session_id)
    return await sessions.load(session_id, state, _voice(host, head.model, request))


@router.post("/{session_id}/rollback", openapi_extra=_EFFECTFUL_FORM)
async def rollback(session_id: str, body: RollbackRequest, sessions: SessionsOf) -> Session:
    """Go back to an earlier version, which becomes the newest."""
    return await sessions.rollback(session_id, body.version)


@router.get("/{session_id}/surprise", openapi_extra=_FORM)
async def surprise(
    session_id: str,
    request: Request,
    host: HostOf,
    sessions: SessionsOf,
    version: Annotated[int | None, Query(ge=0, lt=2**53, description="The newest, unless said.")] = None,
) -> SurpriseTrace:
    """What was memorised and what was forgotten, token by token, in the request behind a version."""
    head = await sessions.head(session_id)
    return await sessions.surprise(session_id, version, _voice(host, head.model, request))


def _voice(host: Host, name: str | None, request: Request) -> TitansAdapter:
    speaker = model_of(host, name, request, remembers=True).speaker
    assert isinstance(speaker, TitansAdapter)  # noqa: S101  # models that remember speak with it
    return speaker
