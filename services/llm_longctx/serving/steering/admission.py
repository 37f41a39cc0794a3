"""Admission of requests that look inside a model: the scope of the key, and the entry of the audit log."""

from __future__ import annotations

from fovea.api.interventions import AddIntervention
from fovea.api.text import GenerationOptions
from shared.registry import CallContext

SCOPE = "interventions"
"""Scope of a key that may intervene, capture and make steering vectors."""


def admit_taps(options: GenerationOptions, run: CallContext) -> None:
    """Check that a request may change and read what it asks for, and note it for the audit log.

    Raises:
        PermissionDenied: The caller's key lacks the scope.
    """
    changes, reads = options.interventions or [], options.capture or []
    if not changes and not reads:
        return
    run.require_scope(SCOPE, "`interventions`" if changes else "`capture`")
    named = [one.vector for one in changes if isinstance(one, AddIntervention) and isinstance(one.vector, str)]
    facts = {
        "interventions": ", ".join(one.type for one in changes),
        "vectors": ", ".join(named),
        "captures": ", ".join(one.type for one in reads),
    }
    run.audit = {"act": "interventions", "model": options.model or "", **{k: v for k, v in facts.items() if v}}
