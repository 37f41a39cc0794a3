"""Sessions in Redis: versions of a memory, one writer at a time, and answers that are given only once.

    {fovea:session:<tenant>:<id>}:head  hash    version, model, weights, tokens, created, updated
    {fovea:session:<tenant>:<id>}:v<n>  string  the sealed state of version n; the last three are kept
    {fovea:session:<tenant>:<id>}:once  hash    digest of an idempotency key → the sealed answer of its request
    {fovea:sessions:<tenant>}:index     sorted set  id → when it was opened

A state is written only on top of the version that it was made from; whoever comes second is told so. A tenant sees its
own sessions only: another's is not there. Knows bytes and versions; knows no model.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

from services.llm_longctx.state.encryption import Sealing
from shared.errors import Conflict, InvalidOption, NotFound, NotReady, TooLarge
from shared.jobs.redis_client import RedisClient, translate_redis_errors

__all__ = ["KEPT", "Head", "SessionStore"]

KEPT = 3
"""Versions of a session that can be gone back to, the current one included."""

MOST = 17 * 2**20
"""Bytes of one state: what a model may remember, and its header."""

_ID = re.compile(r"s_[a-z0-9]{20}")

_WRITE = """
local head, stem = KEYS[1], KEYS[2]
local expected, state, ttl, keep = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local once, answer = ARGV[5], ARGV[6]
local version = tonumber(redis.call('HGET', head, 'version') or -1)
if version < 0 then return {'gone', '0'} end
if version ~= expected then return {'conflict', tostring(version)} end
version = version + 1
redis.call('HSET', head, 'version', version, 'tokens', ARGV[7], 'updated', ARGV[8], 'held', ARGV[9])
redis.call('PEXPIRE', head, ttl)
redis.call('SET', stem .. 'v' .. version, state, 'PX', ttl)
redis.call('DEL', stem .. 'v' .. (version - keep))
for back = 1, keep - 1 do redis.call('PEXPIRE', stem .. 'v' .. (version - back), ttl) end
if once ~= '' then redis.call('HSET', stem .. 'once', once, answer) end
redis.call('PEXPIRE', stem .. 'once', ttl)
return {'written', tostring(version)}
"""
"""Compare and set: the state of the next version, only on top of the expected one; with it the request's answer."""


@dataclass(frozen=True, slots=True)
class Head:
    """What is known of a session.

    Attributes:
        id: Its name.
        model: The model that remembers, and `weights` the digest that its states belong to.
        version: Writes so far.
        tokens: Tokens read.
        held: Bytes of what it remembers.
        created, updated: Unix time.
    """

    id: str
    model: str
    weights: str
    version: int
    tokens: int
    held: int
    created: float
    updated: float


class SessionStore:
    """The sessions of all tenants.

    Args:
        link: Redis.
        sealing: Seals states and answers.
        ttl_s: How long an unused session is kept.
    """

    def __init__(self, link: RedisClient, sealing: Sealing, ttl_s: int) -> None:
        self._link = link
        self._sealing = sealing
        self._ttl_ms = ttl_s * 1000
        self._write = self._link.client.register_script(_WRITE)

    async def create(self, tenant: str, model: str, weights: str, state: bytes, tokens: int = 0, held: int = 0) -> Head:
        """A new session whose version 0 is `state`, `held` bytes of which are what is remembered."""
        name, now = f"s_{secrets.token_hex(10)}", time.time()
        stem = _stem(tenant, name)
        head = Head(name, model, weights, 0, tokens, held, now, now)
        facts = {field: value for field, value in asdict(head).items() if field != "id"}
        async with self._redis() as redis, redis.pipeline(transaction=True) as pipe:
            pipe.hset(f"{stem}head", mapping=facts)
            pipe.pexpire(f"{stem}head", self._ttl_ms)
            pipe.set(f"{stem}v0", self._sealed(state, tenant, f"{stem}v0"), px=self._ttl_ms)
            await pipe.execute()
            await self._listed(redis, tenant, head)
        return head

    async def head(self, tenant: str, name: str) -> Head:
        """What is known of a session.

        Raises:
            NotFound: The tenant has no such session.
        """
        async with self._redis() as redis:
            found = await redis.hgetall(f"{_stem(tenant, name)}head")
        if not found:
            raise _missing(name)
        return _head(name, found)

    async def recent(self, tenant: str, limit: int, after: str | None = None) -> list[Head]:
        """The tenant's sessions, newest first.

        Args:
            tenant: Whose.
            limit: At most so many.
            after: Those that are older than this one.

        Raises:
            NotFound: The tenant has no session `after`.
        """
        index, begin = _index(tenant), 0
        found: list[Head] = []
        async with self._redis() as redis:
            if after is not None:
                _stem(tenant, after)
                rank = await redis.zrevrank(index, after)
                if rank is None:
                    raise _missing(after, field="after")
                begin = rank + 1
            while len(found) < limit:
                names = [name.decode() for name in await redis.zrevrange(index, begin, begin + limit - len(found) - 1)]
                heads = [await redis.hgetall(f"{_stem(tenant, name)}head") for name in names]
                found += [_head(name, facts) for name, facts in zip(names, heads, strict=True) if facts]
                if gone := [name for name, facts in zip(names, heads, strict=True) if not facts]:  # their time was over
                    await redis.zrem(index, *gone)
                elif not names:
                    break
                begin += len(names) - len(gone)
        return found

    async def read(self, tenant: str, name: str, version: int) -> bytes:
        """The state of a version.

        Raises:
            NotFound: It is not kept any more, or never was.
        """
        place = f"{_stem(tenant, name)}v{version}"
        async with self._redis() as redis:
            sealed = await redis.get(place)
        if sealed is None:
            hint = f"The last {KEPT} versions of a session are kept."
            raise NotFound(f"The session {name} has no version {version}.", hint=hint, field="version")
        return self._sealing.open(sealed, tenant, place)

    async def write(
        self,
        tenant: str,
        head: Head,
        state: bytes,
        tokens: int,
        held: int = 0,
        *,
        once: str | None = None,
        answer: bytes = b"",
    ) -> int:
        """Store the next version on top of `head.version`, and with it the answer of the request that made it.

        Args:
            tenant: Whose session.
            head: The session as it was read before the request.
            state: What is remembered now.
            tokens: Tokens read now.
            held: Bytes of `state` that are what is remembered.
            once: Idempotency key of the request.
            answer: What a repetition of the request is answered.

        Returns:
            The new version.

        Raises:
            Conflict: Somebody else has written since.
            NotFound: The session was deleted since.
            TooLarge: The state is too large.
        """
        stem = _stem(tenant, head.id)
        place, key = f"{stem}v{head.version + 1}", _once(once) if once else ""
        sealed = self._sealed(state, tenant, place)
        kept = self._sealing.seal(answer, tenant, f"{stem}once:{key}") if key else b""
        args = [head.version, sealed, self._ttl_ms, KEPT, key, kept, tokens, time.time(), held]
        async with self._redis() as redis:
            how, version = await self._write(keys=[f"{stem}head", stem], args=args)
            if how == b"written":
                await self._listed(redis, tenant, head)
        if how == b"gone":
            raise _missing(head.id)
        if how == b"conflict":
            detail = f"The session {head.id} is at version {version.decode()}; the request began at {head.version}."
            raise Conflict(detail, hint="One request at a time writes to a session: send it again.")
        return int(version)

    async def answered(self, tenant: str, name: str, once: str) -> bytes | None:
        """The answer that a request with this idempotency key was given, if there was one."""
        stem, key = _stem(tenant, name), _once(once)
        async with self._redis() as redis:
            sealed = await redis.hget(f"{stem}once", key)
        return None if sealed is None else self._sealing.open(sealed, tenant, f"{stem}once:{key}")

    async def delete(self, tenant: str, name: str) -> None:
        """Forget a session: its states and its answers.

        Raises:
            NotFound: The tenant has no such session.
        """
        stem, version = _stem(tenant, name), (await self.head(tenant, name)).version
        async with self._redis() as redis:
            await redis.delete(f"{stem}head")  # first: a write that is on its way finds nothing to write on
            # A write may have come between reading the version and deleting the head: one more than is kept.
            states = [f"{stem}v{n}" for n in range(max(version - KEPT, 0), version + 2)]
            await redis.delete(f"{stem}once", *states)
            await redis.zrem(_index(tenant), name)

    async def _listed(self, redis: Any, tenant: str, head: Head) -> None:
        """Keep the session in its tenant's list as long as it is kept itself."""
        async with redis.pipeline(transaction=True) as pipe:
            pipe.zadd(_index(tenant), {head.id: head.created}, nx=True)
            pipe.pexpire(_index(tenant), self._ttl_ms)
            await pipe.execute()

    @asynccontextmanager
    async def _redis(self) -> AsyncIterator[Any]:
        try:
            with translate_redis_errors():
                yield self._link.client
        except NotReady as error:
            detail = "Sessions can't be reached: Redis is away or takes no writes."
            raise NotReady(detail, hint=error.hint, retry_after=1) from error

    def _sealed(self, state: bytes, tenant: str, place: str) -> bytes:
        if len(state) > MOST:
            raise TooLarge(f"The session would remember {len(state):,} bytes; {MOST:,} are allowed.")
        return self._sealing.seal(state, tenant, place)


def _stem(tenant: str, name: str) -> str:
    """What the keys of a session begin with; the tenant as a digest, because nobody checks its letters.

    Raises:
        InvalidOption: This can't be the name of a session.
    """
    if not _ID.fullmatch(name):
        raise InvalidOption("A session's id looks like s_0123456789abcdef0123.", field="session_id")
    return f"{{fovea:session:{_digest(tenant)}:{name}}}:"


def _index(tenant: str) -> str:
    """Where a tenant's sessions are listed."""
    return f"{{fovea:sessions:{_digest(tenant)}}}:index"


def _digest(tenant: str) -> str:
    return sha256(tenant.encode()).hexdigest()[:24]


def _head(name: str, found: Mapping[bytes, bytes]) -> Head:
    facts = {key.decode(): value.decode() for key, value in found.items()}
    return Head(
        name,
        facts["model"],
        facts["weights"],
        int(facts["version"]),
        int(facts["tokens"]),
        int(facts.get("held", 0)),
        float(facts["created"]),
        float(facts["updated"]),
    )


def _once(key: str) -> str:
    """The name of an idempotency key; a digest, because callers choose its length."""
    return sha256(key.encode()).hexdigest()


def _missing(name: str, field: str = "session_id") -> NotFound:
    hint = "POST /v1/sessions opens one; unused ones are forgotten after a while."
    return NotFound(f"There is no session {name}.", hint=hint, field=field)
