"""Caller: who a request is served for, with what permissions and limits. Knows no keys, no tokens and no HTTP."""

from dataclasses import dataclass
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from fovea.api.replica import SCOPES_HEADER
from fovea.errors import PermissionDenied
from shared.jobs.key_limits import describe_key

KeyScope = Literal["infer", "jobs", "admin", "metrics", "interventions"]

SCOPES: tuple[KeyScope, ...] = ("infer", "jobs", "admin", "metrics", "interventions")
"""`infer` runs models, `jobs` queues and reads jobs, `admin` manages keys and models, `metrics` reads `/metrics`,
`interventions` looks inside language models and steers them."""

TENANT_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""Form of a tenant's name; it becomes part of Redis keys and log lines."""


class KeyLimits(BaseModel):
    """How much a key may be used."""

    model_config = ConfigDict(frozen=True)

    rate_per_minute: int | None = Field(None, ge=1, description="Own rate; null for the tenant's common one.")
    quota_per_day: int | None = Field(None, ge=1, description="Requests per day; null for no quota.")
    tokens_per_minute: int | None = Field(None, ge=1, description="Tokens read and written per minute; null for none.")
    tokens_per_day: int | None = Field(None, ge=1, description="Tokens read and written per day; null for none.")
    weight: float = Field(1.0, gt=0, le=100, description="Share of a busy service next to other tenants.")


UNLIMITED: Final = KeyLimits()
"""The tenant's common rate, and no quota."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of a request: a tenant, its permissions and the limits of its key."""

    tenant: str
    scopes: frozenset[str]
    key: str = ""
    limits: KeyLimits = UNLIMITED

    @property
    def scope_header(self) -> str:
        """Its permissions as replicas read them (`fovea.api.replica.SCOPES_HEADER`)."""
        return ",".join(sorted(self.scopes))

    @property
    def job_headers(self) -> dict[str, str]:
        """Headers by which a job carries its tenant, its permissions and its key."""
        limits = describe_key(self.key, self.limits.tokens_per_minute, self.limits.tokens_per_day)
        return {"x-fovea-tenant": self.tenant, SCOPES_HEADER: self.scope_header, **limits}

    def require_scope(self, scope: KeyScope) -> None:
        """Check that the key has a scope. Raises PermissionDenied: the key does not have it."""
        if scope not in self.scopes:
            detail = f"This key lacks the scope {scope!r}; it has {', '.join(sorted(self.scopes)) or 'none'}."
            named = " --scope ".join([*sorted(self.scopes), scope])
            raise PermissionDenied(detail, hint=f"Make one with `fovea keys add TENANT --scope {named}`.")


LOCAL = Caller("local", frozenset(SCOPES))
"""Every caller of a gateway without keys."""


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
