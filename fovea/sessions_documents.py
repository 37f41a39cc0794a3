"""What models keep between requests, one function per deed: sessions with a memory, and documents that are read once.

Each gives a `Call` for `Client.send`; `chat(…, session_id=…)` and `chat(…, document_id=…)` go on from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import httpx2

from fovea.call import Call, read_bytes
from fovea.endpoints import parse_as
from shared.api.sessions import Deleted, DocumentInfo, DocumentList, DocumentText, Session, SessionList, SurpriseTrace

__all__ = [
    "delete_document",
    "delete_session",
    "document",
    "documents",
    "export_state",
    "fork",
    "import_state",
    "open_session",
    "rollback",
    "session",
    "sessions",
    "store_document",
    "surprise",
]


def open_session(model: str | None = None) -> Call[Session]:
    """Open a session that remembers nothing yet."""
    return Call("POST", "/v1/sessions", parse_as(Session), json={} if model is None else {"model": model})


def sessions(limit: int = 100, after: str | None = None) -> Call[SessionList]:
    """List the caller's sessions, newest first; `after` is the last id of the page before."""
    return Call("GET", "/v1/sessions", parse_as(SessionList), params={"limit": limit, "after": after})


def session(name: str) -> Call[Session]:
    """Fetch what is known of a session."""
    return Call("GET", _session(name), parse_as(Session))


def delete_session(name: str) -> Call[Deleted]:
    """Forget a session, its versions and its answers."""
    return Call("DELETE", _session(name), parse_as(Deleted))


def fork(name: str) -> Call[Session]:
    """Open a session that goes on from another's memory."""
    return Call("POST", f"{_session(name)}/fork", parse_as(Session))


def rollback(name: str, version: int) -> Call[Session]:
    """Go back to an earlier version, which becomes the newest."""
    return Call("POST", f"{_session(name)}/rollback", parse_as(Session), json={"version": version})


def export_state(name: str) -> Call[bytes]:
    """Fetch what a session remembers, as bytes."""
    return Call("GET", f"{_session(name)}/export", read_bytes)


def import_state(name: str, state: bytes) -> Call[Session]:
    """Let a session go on from exported bytes."""
    headers = {"content-type": "application/octet-stream"}
    return Call("POST", f"{_session(name)}/import", parse_as(Session), content=state, headers=headers)


def surprise(name: str, version: int | None = None) -> Call[SurpriseTrace]:
    """Fetch what the request behind a version did to the memory, token by token."""
    return Call("GET", f"{_session(name)}/surprise", parse_as(SurpriseTrace), params={"version": version})


def store_document(
    text: str, *, model: str | None = None, name: str | None = None, longctx: Mapping[str, Any] | None = None
) -> Call[DocumentInfo]:
    """Have a text read once."""
    given = {"text": text, "model": model, "name": name, "longctx": longctx}
    body = {field: value for field, value in given.items() if value is not None}
    return Call("POST", "/v1/documents", parse_as(DocumentInfo), json=body)


def documents(limit: int = 100) -> Call[list[DocumentInfo]]:
    """List the caller's documents, newest first."""

    def read(response: httpx2.Response) -> list[DocumentInfo]:
        return DocumentList.model_validate_json(response.content).data

    return Call("GET", "/v1/documents", read, params={"limit": limit})


def document(name: str) -> Call[DocumentText]:
    """Fetch a document with its text."""
    return Call("GET", _document(name), parse_as(DocumentText))


def delete_document(name: str) -> Call[Deleted]:
    """Forget a document."""
    return Call("DELETE", _document(name), parse_as(Deleted))


def _session(name: str) -> str:
    return f"/v1/sessions/{quote(name, safe='')}"


def _document(name: str) -> str:
    return f"/v1/documents/{quote(name, safe='')}"
