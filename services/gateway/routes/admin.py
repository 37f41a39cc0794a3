"""Admin routes: API keys, tenants, replicas and the audit log. All need the scope `admin`; every change is audited."""

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from fovea.api.usage import LimitUse
from fovea.errors import Conflict
from services.gateway.http.openapi import PROBLEMS
from services.gateway.policy.audit_log import AuditLog
from services.gateway.policy.auth import KeyRing
from services.gateway.policy.caller import TENANT_PATTERN, Caller, KeyLimits, KeyScope
from services.gateway.policy.key_file import Expiry, Key, KeyFacts
from services.gateway.policy.quotas import RateLimiter
from services.gateway.routes.dependencies import get_caller

router = APIRouter(prefix="/v1/admin", tags=["admin"], responses=PROBLEMS)

KeyId = Annotated[str, Path(pattern=r"^[0-9a-f]{8}$", description="The id, as lists show it; not the key.")]


class KeyChanges(KeyLimits):
    """Fields of a key that may be changed; an absent field stays."""

    model_config = ConfigDict(extra="forbid")

    scopes: tuple[KeyScope, ...] | None = None
    expires: Expiry | None = None


class NewKey(KeyChanges):
    """A key to be made."""

    tenant: str = Field(pattern=TENANT_PATTERN)
    scopes: tuple[KeyScope, ...] | None = ("infer", "jobs")


class Rotation(BaseModel):
    """How a key is rotated."""

    model_config = ConfigDict(extra="forbid")

    overlap_hours: float = Field(24.0, ge=0, le=24 * 90, description="How long the old key stays valid.")


class KeyInfo(KeyFacts):
    """A key without its secret."""

    is_expired: bool
    last_used: datetime | None = Field(description="To half a minute; null if never.")
    use: list[LimitUse] = Field([], description="How much of its limits is used; only in lists.")


class MadeKey(KeyInfo):
    """A key that was just made; its text is shown only now."""

    key: str


class KeyInfoList(BaseModel):
    """Keys, oldest first."""

    keys: list[KeyInfo]


class TenantInfo(BaseModel):
    """A tenant, and how many keys it has."""

    tenant: str
    keys: int
    valid_keys: int


class TenantList(BaseModel):
    """Tenants that have keys."""

    tenants: list[TenantInfo]


class AuditEntries(BaseModel):
    """Administrative acts, newest first."""

    entries: list[dict[str, Any]]


class ReplicaInfo(BaseModel):
    """A replica as this gateway sees it."""

    id: str
    service: str
    version: str = Field(description="Version of the service; empty is the stable one.")
    ready: bool
    models: tuple[str, ...]
    requests: int = Field(description="Requests of this gateway that it is working on.")
    slots: int = Field(description="Requests that it works on at once without one delaying the others much.")
    memory: float = Field(description="Share of its memory that it has taken, 0 to 1.")
    trouble: str = Field(description="Why it is not ready, in a sentence; empty if it is.")
    seen: datetime = Field(description="When it last renewed its record.")


class ReplicaList(BaseModel):
    """Replicas that are alive, by service."""

    replicas: list[ReplicaInfo]


_RECORD_FIELDS = set(ReplicaInfo.model_fields) - {"requests"}


@router.get("/keys")
async def list_keys(
    request: Request,
    tenant: Annotated[str | None, Query(max_length=64, description="Only keys of this tenant.")] = None,
) -> KeyInfoList:
    """All keys, or those of a tenant."""
    ring, _, _ = _parts(request)
    keys, used = await asyncio.gather(asyncio.to_thread(ring.list_keys), asyncio.to_thread(ring.read_last_used))
    limits: RateLimiter = request.app.state.gateway.limits
    found = [(key, _describe(key, used.get(key.id))) for key in keys if tenant in {None, key.tenant}]
    use = [await limits.read(Caller(key.tenant, frozenset(key.scopes), key.id, limits=key)) for key, _ in found]
    return KeyInfoList(keys=[one.model_copy(update={"use": now}) for (_, one), now in zip(found, use, strict=True)])


@router.post("/keys", status_code=201)
async def make_key(request: Request, new: NewKey) -> MadeKey:
    """Make a key. Its text is in the answer, and nowhere else."""
    ring, audit, actor = _parts(request)
    fields = new.model_dump(exclude={"tenant", "scopes"})
    key, text = await asyncio.to_thread(lambda: ring.add(new.tenant, new.scopes or (), **fields))
    audit.write(actor, "key made", key.id, tenant=key.tenant, scopes=key.scopes)
    return MadeKey(**_describe(key, None).model_dump(), key=text)


@router.patch("/keys/{key_id}")
async def change_key(request: Request, key_id: KeyId, changes: KeyChanges) -> KeyInfo:
    """Change scopes, limits or the expiry of a key."""
    ring, audit, actor = _parts(request)
    fields = changes.model_dump(exclude_unset=True)
    if fields.get("scopes", ()) is None:
        del fields["scopes"]
    key = await asyncio.to_thread(ring.update, key_id, fields)
    audit.write(actor, "key changed", key.id, tenant=key.tenant, changes=fields)
    return _describe(key, ring.read_last_used().get(key.id))


@router.post("/keys/{key_id}/rotate", status_code=201)
async def rotate_key(request: Request, key_id: KeyId, how: Rotation | None = None) -> MadeKey:
    """Make a key like this one, which stays valid for a while next to it."""
    ring, audit, actor = _parts(request)
    overlap = timedelta(hours=(how or Rotation(overlap_hours=24.0)).overlap_hours)
    key, text = await asyncio.to_thread(ring.rotate, key_id, overlap)
    end = datetime.now(UTC) + overlap
    audit.write(actor, "key rotated", key_id, tenant=key.tenant, new=key.id, until=min(key.expires or end, end))
    return MadeKey(**_describe(key, None).model_dump(), key=text)


@router.delete("/keys/{key_id}")
async def revoke_key(request: Request, key_id: KeyId) -> KeyInfo:
    """Revoke a key; it is refused within a second."""
    ring, audit, actor = _parts(request)
    revocations, used = request.app.state.gateway.revocations, ring.read_last_used().get(key_id)
    try:
        key = await asyncio.to_thread(ring.revoke, key_id)
    except Conflict as error:
        if not ring.knows(key_id):
            raise
        key = ring.describe(key_id)
        audit.write(actor, "key revoked, but not in the key file", key.id, tenant=key.tenant, reason=error.detail)
        if not await revocations.publish(key.id):
            error.detail += " This gateway refuses the key until it restarts."
            raise
        return _describe(key, used)
    audit.write(actor, "key revoked", key.id, tenant=key.tenant)
    await revocations.publish(key.id)
    return _describe(key, used)


@router.get("/tenants")
async def list_tenants(request: Request) -> TenantList:
    """Tenants that have keys; what they consumed is at `/v1/usage?tenant=…`."""
    ring, _, _ = _parts(request)
    keys = await asyncio.to_thread(ring.list_keys)
    known, valid = Counter(key.tenant for key in keys), Counter(key.tenant for key in keys if not key.is_expired)
    found = [TenantInfo(tenant=name, keys=count, valid_keys=valid[name]) for name, count in sorted(known.items())]
    return TenantList(tenants=found)


@router.get("/replicas")
async def list_replicas(request: Request) -> ReplicaList:
    """All replicas that are alive: their load, memory and models."""
    registry = request.app.state.gateway.registry
    alive = [replica for service in registry.services for replica in registry.list_alive(service)]
    facts = [ReplicaInfo(requests=one.in_flight, **one.record.model_dump(include=_RECORD_FIELDS)) for one in alive]
    return ReplicaList(replicas=facts)


@router.get("/audit")
async def read_audit(
    request: Request, limit: Annotated[int, Query(ge=1, le=1000, description="Most entries, newest first.")] = 100
) -> AuditEntries:
    """The last administrative acts."""
    _, audit, _ = _parts(request)
    return AuditEntries(entries=[dict(entry) for entry in await asyncio.to_thread(audit.read, limit)])


def _parts(request: Request) -> tuple[KeyRing, AuditLog, str]:
    gateway, caller = request.app.state.gateway, get_caller(request)
    return gateway.keys, gateway.audit, f"{caller.tenant}/{caller.key or 'local'}"


def _describe(key: Key, last_used: datetime | None) -> KeyInfo:
    return KeyInfo(**key.model_dump(exclude={"sha256"}), is_expired=key.is_expired, last_used=last_used)
