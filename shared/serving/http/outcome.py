"""Outcome of a call to a service, over HTTP or as a job: what headers, metrics, span and log say about it."""

from __future__ import annotations

import json

from shared import telemetry
from shared.api.replica import AUDIT_HEADER
from shared.api.usage import USAGE_HEADER
from shared.asgi.errors import RawHeaders
from shared.asgi.observation import ObservedRequest
from shared.errors import FoveaError
from shared.registry import CallContext


def build_facts_headers(request_id: str, run: CallContext) -> RawHeaders:
    """Build the headers that every answer has: the request's id, what it consumed, and what the audit log is to say."""
    headers = [(b"x-request-id", request_id.encode("latin-1", "replace"))]
    for name, facts in ((USAGE_HEADER, run.usage), (AUDIT_HEADER, run.audit)):
        if facts:
            headers.append((name.encode(), json.dumps(facts).encode()))
    return headers


def observe_outcome(observed: ObservedRequest, run: CallContext, route: str, error: str) -> None:
    """Complete what is observed of a call; `error` is the code of the error that it was answered with, if known."""
    observed.route, observed.model = route, run.model
    if observed.status >= 400:
        observed.error = error or str(observed.status)
    if observed.is_recorded:
        observed.facts = {"fovea.model": run.model or None, "fovea.tenant": run.tenant}
        observed.facts |= {f"fovea.usage.{name}": value for name, value in run.usage.items()}


def log_refusal(error: FoveaError) -> None:
    """Log an error that is the answer: at WARNING where the fault is on this side."""
    logger = telemetry.log()
    write = logger.warning if error.status >= 500 else logger.info
    write("refused", status=error.status, code=error.code, detail=error.detail)
