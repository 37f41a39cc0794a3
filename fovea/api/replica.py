"""Replica record: what a replica announces in Redis and renews while it lives, and how its routes are to be treated.

Replicas write, the gateway reads; neither imports the other. A replica that stops renewing is dropped
after `HEARTBEAT_TTL_S`.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from pydantic import BaseModel, Field

RENEW_S = 1.0
"""Seconds between two renewals."""

HEARTBEAT_TTL_S = 5.0
"""Seconds without a renewal after which a record no longer counts."""

WANTED_S = 300
"""Seconds for which a service on demand stays wanted after a request or a job waited for it."""

SECRET_HEADER: Final = "x-fovea-replica-secret"  # noqa: S105  # a name
"""Header, or gRPC metadata, that carries the secret by which a replica knows its gateway."""

HOLDS_HEADER: Final = "x-fovea-holds"
"""Header of an answer that names the session or document which its replica holds from now on."""

_AFFINE_KEY: Final = "x-fovea-affine"
SCOPES_HEADER: Final = "x-fovea-scopes"
"""Header, or gRPC metadata, by which the gateway says what the caller's key allows, with commas between."""

STREAM_HEADER: Final = "x-fovea-stream-ms"
"""Header by which the gateway says how long a stream may take as a whole, in milliseconds; 0 for any time."""

JOB_HEADER: Final = "x-fovea-job"
"""Header by which a worker says that a request is a job: its id and the number of the attempt, with a space between."""

AUDIT_HEADER: Final = "x-fovea-audit"
"""Response header of a replica: what the gateway writes into its audit log, as a JSON object. Callers don't get it."""

_EFFECTFUL_KEY: Final = "x-fovea-effectful"
_ENDLESS_KEY: Final = "x-fovea-endless"

AFFINE: Final[Mapping[str, Any]] = {_AFFINE_KEY: True}
"""`openapi_extra` of a route whose replicas remember what they have read: sessions, documents, beginnings of prompts.

The gateway sends a request to the replica that has what its `session_id`, `document_id` or prompt needs.
"""

EFFECTFUL: Final[Mapping[str, Any]] = {_EFFECTFUL_KEY: True}
"""`openapi_extra` of a route that leaves something behind, so that the gateway never sends its request twice."""

ENDLESS: Final[Mapping[str, Any]] = {_ENDLESS_KEY: True}
"""`openapi_extra` of a route that answers while its body arrives: gateway and service bound neither size nor time."""


def replicas_key(service: str) -> str:
    """Redis hash that holds the replicas of a service: replica id → `ReplicaRecord` as JSON."""
    return f"fovea:replicas:{service}"


def wanted_key(service: str) -> str:
    """Redis key that is there while a service on demand is wanted, for `WANTED_S` seconds at a time."""
    return f"fovea:wanted:{service}"


class ReplicaRecord(BaseModel, frozen=True):
    """Where one replica listens and what it serves."""

    id: str
    service: str
    http: str = Field(description="Base URL, for example http://127.0.0.1:40123; empty of one that can't start.")
    grpc: str | None = Field(None, description="host:port of its Open Inference gRPC server.")
    pid: int
    ready: bool = Field(description="Whether it can answer: nothing is loading, and not every model failed to load.")
    models: tuple[str, ...] = Field(description="Names it serves, for routing by model name.")
    routes: tuple[str, ...] = Field((), description="Paths that it answers, for routing by path, such as /v1/segment.")
    effectful: tuple[str, ...] = Field(
        (), description="Routes that leave something behind: a request that may have arrived is not sent again."
    )
    endless: tuple[str, ...] = Field(
        (), description="Routes whose body may never end: neither its size nor the time is bounded."
    )
    affine: tuple[str, ...] = Field((), description="Routes whose requests go to the replica with what they continue.")
    version: str = Field("", description="Version of the service that it serves; empty is the stable one.")
    slots: int = Field(1, ge=1, description="Requests that it works on at once without one delaying the others much.")
    memory: float = Field(0.0, description="Share of its memory that the replica has taken.")
    trouble: str = Field("", description="Why it is not ready, or why it ended itself, in a sentence.")
    out_of_memory: bool = Field(False, description="Whether it ended because it outgrew its memory.")
    seen: float = Field(description="Unix time of the last renewal.")


def is_endless(operation: Mapping[str, Any] | None) -> bool:
    """Whether an OpenAPI operation, or the `openapi_extra` of a route, has the mark `ENDLESS`."""
    return operation is not None and operation.get(_ENDLESS_KEY) is True


def route_fields(document: Mapping[str, Any], is_own: Callable[[str], bool]) -> dict[str, tuple[str, ...]]:
    """Read `routes`, `effectful`, `endless` and `affine` of a record from a service's OpenAPI document.

    Args:
        document: The OpenAPI document; operations carry `EFFECTFUL`, `ENDLESS` and `AFFINE` as extensions.
        is_own: Whether a path belongs to this service alone, so that the gateway may route by it.
    """
    paths = document.get("paths")
    own = {path: item for path, item in paths.items() if is_own(path)} if isinstance(paths, Mapping) else {}
    marks = {"effectful": _EFFECTFUL_KEY, "endless": _ENDLESS_KEY, "affine": _AFFINE_KEY}
    marked = {name: tuple(path for path, item in own.items() if _has_mark(item, key)) for name, key in marks.items()}
    return {"routes": tuple(own), **marked}


def _has_mark(item: Any, key: str) -> bool:
    operations = item.values() if isinstance(item, Mapping) else ()
    return any(isinstance(operation, Mapping) and operation.get(key) is True for operation in operations)
