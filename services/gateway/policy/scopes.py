"""Scopes of paths: which permission a request needs, whether it comes by itself, as a job or as a line of a batch."""

from __future__ import annotations

from typing import Final

from services.gateway.policy.caller import KeyScope

INSIDE_PATHS: Final = ("/v1/steering-vectors", "/v1/captures", "/v1/sweeps")
"""Paths whose every request looks inside language models or steers them."""

_STUDY_PATH: Final = "/v1/probe"
"""Studies of models: to run one looks inside; what was found may be read."""


def find_scope(path: str, method: str = "POST") -> KeyScope:
    """The scope that a request needs."""
    if path.startswith("/v1/jobs"):
        return "jobs"
    if path.startswith(INSIDE_PATHS) or (method == "POST" and f"{path}/".startswith(f"{_STUDY_PATH}/")):
        return "interventions"
    if path.startswith(("/v2/repository/models/", "/v1/admin/")):
        return "admin"
    return "metrics" if path.startswith("/metrics") else "infer"
