"""Session store in Redis: versioned states with optimistic locking, and idempotent answers.

    {fovea:session:<tenant>:<id>}:head  hash    version, model, weights, tokens, created, updated
    {fovea:session:<tenant>:<id>}:v<n>  string  the encrypted state of version n; the last three are kept
    {fovea:session:<tenant>:<id>}:once  hash    digest of an idempotency key → the encrypted answer of its request
    {fovea:session:<tenant>:<id>}:order list    those digests, oldest first; the last sixteen are kept
    {fovea:sessions:<tenant>}:index     sorted set  id → when it was opened

A state is written only on top of the version that it was made from; a second writer gets a conflict. A tenant sees only
its own sessions. Knows bytes and versions; knows no model.
"""

import re
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from typing import Any

from pydantic import TypeAdapter

from fovea.errors import Conflict, InvalidOption, NotFound, NotReady, RateLimited, TooLarge
from fovea_memory.state.encryption import TenantCipher
from shared.jobs.redis_client import RedisClient, translate_redis_errors

KEPT_VERSIONS = 3
"""Versions of a session that can be gone back to, the current one included."""

KEPT_ANSWERS = 16
"""Answers of a session that a repeated request still gets; a request is repeated soon or never."""

MAX_RECORD_BYTES = 17 * 2**20
"""Most bytes of one stored version: the model's state and its header."""

_ID = re.compile(r"s_[a-z0-9]{20}")

_WRITE_SCRIPT = """
local head, prefix = KEYS[1], KEYS[2]
local expected, state, ttl, keep = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local once, answer = ARGV[5], ARGV[6]
local version = tonumber(redis.call('HGET', head, 'version') or -1)
if version < 0 then return {'gone', '0'} end
if version ~= expected then return {'conflict', tostring(version)} end
version = version + 1
redis.call('HSET', head, 'version', version, 'tokens', ARGV[7], 'updated', ARGV[8], 'held', ARGV[9])
redis.call('PEXPIRE', head, ttl)
redis.call('SET', prefix .. 'v' .. version, state, 'PX', ttl)
redis.call('DEL', prefix .. 'v' .. (version - keep))
for back = 1, keep - 1 do redis.call('PEXPIRE', prefix .. 'v' .. (version - back), ttl) end
if once ~= '' and redis.call('HSET', prefix .. 'once', once, answer) == 1 then
  redis.call('RPUSH', prefix .. 'order', once)
  while redis.call('LLEN', prefix .. 'order') > tonumber(ARGV[10]) do
    redis.call('HDEL', prefix .. 'once', redis.call('LPOP', prefix .. 'order'))
  end
end
redis.call('PEXPIRE', prefix .. 'once', ttl)
redis.call('PEXPIRE', prefix .. 'order', ttl)
return {'written', tostring(version)}
"""
"""Compare and set: write the next version only on top of the expected one, together with the request's answer."""


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """Metadata of a session.

    Attributes:
        id: Its id.
        model, weights: The model, and the digest of the weights that its states belong to.
        version: Number of writes so far.
        tokens: Tokens read.
        state_bytes: Size of the state.
        created, updated: Unix time.
    """

    id: str
    model: str
    weights: str
    version: int
    tokens: int
    state_bytes: int
    created: float
    updated: float


_RECORDS = TypeAdapter(SessionRecord)


class SessionStore:
    """The sessions of all tenants.

    Args:
        client: Redis.
        cipher: Encrypts states and answers.
        ttl_s: How long an unused session is kept.
        quota_bytes: Most bytes of states that a tenant's sessions hold before it opens no more.
    """

    def __init__(self, client: RedisClient, cipher: TenantCipher, ttl_s: int, quota_bytes: int = 2**40) -> None:
        self._redis = partial(reach_redis, client, "Sessions")
        self._cipher, self._ttl_ms, self._quota_bytes = cipher, ttl_s * 1000, quota_bytes
        self._write = client.client.register_script(_WRITE_SCRIPT)

    async def create(
        self, tenant: str, model: str, weights: str, state: bytes, tokens: int = 0, state_bytes: int = 0
    ) -> SessionRecord:
        """Create a session whose version 0 is `state`; `state_bytes` of it are the model's own.

        Raises:
            RateLimited: The tenant's sessions hold as many bytes as they may.
        """
        if (held := await self._count_bytes(tenant)) + state_bytes > self._quota_bytes:
            detail = f"Your sessions hold {held:,} bytes of at most {self._quota_bytes:,}."
            raise RateLimited(detail, hint="Delete some (DELETE /v1/sessions/{id}), or wait until unused ones expire.")
        name, now = f"s_{secrets.token_hex(10)}", time.time()
        prefix = _key_prefix(tenant, name)
        record = SessionRecord(name, model, weights, 0, tokens, state_bytes, now, now)
        fields = {field: value for field, value in asdict(record).items() if field != "id"}
        fields["held"] = fields.pop("state_bytes")
        async with self._redis() as redis, redis.pipeline(transaction=True) as pipe:
            pipe.hset(f"{prefix}head", mapping=fields)
            pipe.pexpire(f"{prefix}head", self._ttl_ms)
            pipe.set(f"{prefix}v0", self._encrypt(state, tenant, f"{prefix}v0"), px=self._ttl_ms)
            await pipe.execute()
            await self._add_to_index(redis, tenant, record)
        return record

    async def get(self, tenant: str, name: str) -> SessionRecord:
        """The metadata of a session.

        Raises:
            NotFound: The tenant has no such session.
        """
        async with self._redis() as redis:
            found = await redis.hgetall(f"{_key_prefix(tenant, name)}head")
        if not found:
            raise _not_found(name)
        return _parse_record(name, found)

    async def list_newest(self, tenant: str, limit: int, after: str | None = None) -> list[SessionRecord]:
        """The tenant's sessions, newest first.

        Args:
            tenant: The tenant.
            limit: At most so many.
            after: Only sessions older than this one.

        Raises:
            NotFound: The tenant has no session `after`.
        """
        index, begin = _index_key(tenant), 0
        found: list[SessionRecord] = []
        async with self._redis() as redis:
            if after is not None:
                _key_prefix(tenant, after)
                rank = await redis.zrevrank(index, after)
                if rank is None:
                    raise _not_found(after, field="after")
                begin = rank + 1
            while len(found) < limit:
                names = [name.decode() for name in await redis.zrevrange(index, begin, begin + limit - len(found) - 1)]
                records = [await redis.hgetall(f"{_key_prefix(tenant, name)}head") for name in names]
                found += [_parse_record(name, fields) for name, fields in zip(names, records, strict=True) if fields]
                if expired := [name for name, fields in zip(names, records, strict=True) if not fields]:
                    await redis.zrem(index, *expired)
                elif not names:
                    break
                begin += len(names) - len(expired)
        return found

    async def read_version(self, tenant: str, name: str, version: int) -> bytes:
        """The state of a version.

        Raises:
            NotFound: It is no longer kept, or never was.
        """
        key = f"{_key_prefix(tenant, name)}v{version}"
        async with self._redis() as redis:
            encrypted = await redis.get(key)
        if encrypted is None:
            hint = f"The last {KEPT_VERSIONS} versions of a session are kept."
            raise NotFound(f"The session {name} has no version {version}.", hint=hint, field="version")
        return self._cipher.decrypt(encrypted, tenant, key)

    async def write_version(
        self,
        tenant: str,
        record: SessionRecord,
        state: bytes,
        tokens: int,
        state_bytes: int = 0,
        *,
        idempotency_key: str | None = None,
        answer: bytes = b"",
    ) -> int:
        """Write the next version on top of `record.version`, together with the answer of the request that made it.

        Args:
            tenant: The tenant.
            record: The session as it was read before the request.
            state: The new state.
            tokens: Tokens read now.
            state_bytes: Size of the model's own part of `state`.
            idempotency_key: Idempotency key of the request.
            answer: The answer that a repetition of the request gets.

        Returns:
            The new version.

        Raises:
            Conflict: Another request has written since.
            NotFound: The session was deleted since.
            TooLarge: The state is too large.
        """
        prefix = _key_prefix(tenant, record.id)
        field = _idempotency_field(idempotency_key) if idempotency_key else ""
        encrypted = self._encrypt(state, tenant, f"{prefix}v{record.version + 1}")
        stored = self._cipher.encrypt(answer, tenant, f"{prefix}once:{field}") if field else b""
        args = [record.version, encrypted, self._ttl_ms, KEPT_VERSIONS, field, stored, tokens, time.time(), state_bytes]
        args.append(KEPT_ANSWERS)
        async with self._redis() as redis:
            status, version = await self._write(keys=[f"{prefix}head", prefix], args=args)
            if status == b"written":
                await self._add_to_index(redis, tenant, record)
        if status == b"gone":
            raise _not_found(record.id)
        if status == b"conflict":
            detail = f"The session {record.id} is at version {version.decode()}; the request began at {record.version}."
            raise Conflict(detail, hint="One request at a time writes to a session: send it again.")
        return int(version)

    async def find_answer(self, tenant: str, name: str, idempotency_key: str) -> bytes | None:
        """The answer that an earlier request with this idempotency key got, if there was one."""
        prefix, field = _key_prefix(tenant, name), _idempotency_field(idempotency_key)
        async with self._redis() as redis:
            encrypted = await redis.hget(f"{prefix}once", field)
        return None if encrypted is None else self._cipher.decrypt(encrypted, tenant, f"{prefix}once:{field}")

    async def delete(self, tenant: str, name: str) -> None:
        """Delete a session: its states and its answers.

        Raises:
            NotFound: The tenant has no such session.
        """
        prefix, version = _key_prefix(tenant, name), (await self.get(tenant, name)).version
        async with self._redis() as redis:
            await redis.delete(f"{prefix}head")  # first: a concurrent write then finds no session
            # A write may have come between reading the version and deleting the head: one more than is kept.
            states = [f"{prefix}v{n}" for n in range(max(version - KEPT_VERSIONS, 0), version + 2)]
            await redis.delete(f"{prefix}once", f"{prefix}order", *states)
            await redis.zrem(_index_key(tenant), name)

    async def _count_bytes(self, tenant: str) -> int:
        """Bytes of the states of all versions that the tenant's sessions keep."""
        async with self._redis() as redis, redis.pipeline(transaction=False) as pipe:
            for name in await redis.zrange(_index_key(tenant), 0, -1):
                pipe.hmget(f"{_key_prefix(tenant, name.decode())}head", "version", "held")
            rows = await pipe.execute()
        return sum(min(int(version) + 1, KEPT_VERSIONS) * int(held or 0) for version, held in rows if version)

    async def _add_to_index(self, redis: Any, tenant: str, record: SessionRecord) -> None:
        """Keep the session in its tenant's index as long as the session lives."""
        async with redis.pipeline(transaction=True) as pipe:
            pipe.zadd(_index_key(tenant), {record.id: record.created}, nx=True)
            pipe.pexpire(_index_key(tenant), self._ttl_ms)
            await pipe.execute()

    def _encrypt(self, state: bytes, tenant: str, key: str) -> bytes:
        if len(state) > MAX_RECORD_BYTES:
            raise TooLarge(f"The session's state would have {len(state):,} bytes; {MAX_RECORD_BYTES:,} are allowed.")
        return self._cipher.encrypt(state, tenant, key)


@asynccontextmanager
async def reach_redis(client: RedisClient, what: str) -> AsyncIterator[Any]:
    """The connection for calls about `what`.

    Raises:
        NotReady: Redis is away, or takes no writes.
    """
    try:
        with translate_redis_errors():
            yield client.client
    except NotReady as error:
        detail = f"{what} can't be reached: Redis is away or takes no writes."
        raise NotReady(detail, hint=error.hint, retry_after=1) from error


def _key_prefix(tenant: str, name: str) -> str:
    """Prefix of a session's Redis keys.

    Raises:
        InvalidOption: The name is not a session id.
    """
    if not _ID.fullmatch(name):
        raise InvalidOption("A session's id looks like s_0123456789abcdef0123.", field="session_id")
    return f"{{fovea:session:{digest_tenant(tenant)}:{name}}}:"


def _index_key(tenant: str) -> str:
    """Redis key of a tenant's index."""
    return f"{{fovea:sessions:{digest_tenant(tenant)}}}:index"


def digest_tenant(tenant: str) -> str:
    """Name of a tenant in Redis keys: a digest, because its characters are not checked."""
    return sha256(tenant.encode()).hexdigest()[:24]


def _parse_record(name: str, found: Mapping[bytes, bytes]) -> SessionRecord:
    fields = {key.decode(): value.decode() for key, value in found.items()}
    return _RECORDS.validate_python({"id": name, "state_bytes": fields.pop("held", 0), **fields})


def _idempotency_field(key: str) -> str:
    """Hash field of an idempotency key; a digest, because callers choose its length."""
    return sha256(key.encode()).hexdigest()


def _not_found(name: str, field: str = "session_id") -> NotFound:
    hint = "POST /v1/sessions opens one; unused ones expire."
    return NotFound(f"There is no session {name}.", hint=hint, field=field)
