"""Endpoints of sessions (a model's memory of a conversation) and documents (texts that a model reads once).

Each function builds a `Call` for `Client.send`; `chat(…, session_id=…)` and `chat(…, document_id=…)` use them.
"""

from collections.abc import Mapping
from typing import Any

from fovea.api.sessions import Deleted, DocumentInfo, DocumentList, DocumentText, Session, SessionList, SurpriseTrace
from fovea.call import Call, parse_as, quote_id, read_bytes


def open_session(model: str | None = None) -> Call[Session]:
    """Open an empty session."""
    return Call("POST", "/v1/sessions", parse_as(Session), json={} if model is None else {"model": model})


def sessions(limit: int = 100, after: str | None = None) -> Call[SessionList]:
    """List the caller's sessions, newest first; `after` is the last id of the page before."""
    return Call("GET", "/v1/sessions", parse_as(SessionList), params={"limit": limit, "after": after})


def session(name: str) -> Call[Session]:
    """Fetch the state of a session."""
    return Call("GET", _session_path(name), parse_as(Session))


def delete_session(name: str) -> Call[Deleted]:
    """Delete a session with its versions and its answers."""
    return Call("DELETE", _session_path(name), parse_as(Deleted))


def fork(name: str) -> Call[Session]:
    """Fork a session: open a new one with a copy of its memory."""
    return Call("POST", f"{_session_path(name)}/fork", parse_as(Session))


def rollback(name: str, version: int) -> Call[Session]:
    """Roll a session back to an earlier version, which becomes the newest."""
    return Call("POST", f"{_session_path(name)}/rollback", parse_as(Session), json={"version": version})


def export_state(name: str) -> Call[bytes]:
    """Export a session's memory as bytes."""
    return Call("GET", f"{_session_path(name)}/export", read_bytes)


def import_state(name: str, state: bytes) -> Call[Session]:
    """Import exported bytes as a session's memory."""
    headers = {"content-type": "application/octet-stream"}
    return Call("POST", f"{_session_path(name)}/import", parse_as(Session), content=state, headers=headers)


def surprise(name: str, version: int | None = None) -> Call[SurpriseTrace]:
    """Fetch how much each token of a version's request surprised the model and changed its memory."""
    return Call("GET", f"{_session_path(name)}/surprise", parse_as(SurpriseTrace), params={"version": version})


def store_document(
    text: str, *, model: str | None = None, name: str | None = None, longctx: Mapping[str, Any] | None = None
) -> Call[DocumentInfo]:
    """Store a text, which the model reads once."""
    fields = {"text": text, "model": model, "name": name, "longctx": longctx}
    body = {field: value for field, value in fields.items() if value is not None}
    return Call("POST", "/v1/documents", parse_as(DocumentInfo), json=body)


def documents(limit: int = 100) -> Call[list[DocumentInfo]]:
    """List the caller's documents, newest first."""
    return Call("GET", "/v1/documents", lambda answer: parse_as(DocumentList)(answer).data, params={"limit": limit})


def document(name: str) -> Call[DocumentText]:
    """Fetch a document with its text."""
    return Call("GET", f"/v1/documents/{quote_id(name)}", parse_as(DocumentText))


def delete_document(name: str) -> Call[Deleted]:
    """Delete a document."""
    return Call("DELETE", f"/v1/documents/{quote_id(name)}", parse_as(Deleted))


def _session_path(name: str) -> str:
    return f"/v1/sessions/{quote_id(name)}"
