"""Documents in Redis: texts that were read once, sealed for their tenant, and in which order they came.

    {fovea:documents:<tenant>}:index        sorted set  id → when it was stored
    {fovea:documents:<tenant>}:<id>         string      the sealed record
    {fovea:documents:<tenant>}:<id>:blocks  string      what a model made of it, sealed, if it is kept
    {fovea:documents:<tenant>}:used         sorted set  id → when its blocks were last used

What a model made of a document is kept up to a size per tenant, the longest unused going first: it can be read again.
Knows records and blocks as bytes.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any

from services.llm_longctx.state.encryption import Sealing
from shared.errors import Conflict, InvalidOption, NotFound, NotReady
from shared.jobs.redis_client import RedisClient, translate_redis_errors

__all__ = ["MOST", "DocumentStore"]

MOST = 1000
"""Documents of a tenant."""

_ID = re.compile(r"doc_[a-f0-9]{24}")

_KEEP = """
local record, place, used, stem = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local blocks, ttl, now, name, most = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], tonumber(ARGV[5])
if redis.call('EXISTS', record) == 0 then return 0 end
redis.call('SET', place, blocks, 'PX', ttl)
redis.call('ZADD', used, now, name)
redis.call('PEXPIRE', used, ttl)
local held = redis.call('STRLEN', place)
for _, other in ipairs(redis.call('ZREVRANGE', used, 0, -1)) do
  if other ~= name then
    local size = redis.call('STRLEN', stem .. other .. ':blocks')
    if size == 0 or held + size > most then
      redis.call('DEL', stem .. other .. ':blocks')
      redis.call('ZREM', used, other)
    else
      held = held + size
    end
  end
end
return 1
"""
"""Blocks of a document that is still there; of the tenant's others those stay that fit beside them, newest first."""


class DocumentStore:
    """The documents of all tenants.

    Args:
        link: Redis.
        sealing: Seals records.
        ttl_s: How long an unused document is kept.
        room: Most bytes of blocks that are kept of one tenant.
    """

    def __init__(self, link: RedisClient, sealing: Sealing, ttl_s: int, room: int) -> None:
        self._link, self._sealing, self._ttl_ms, self.room = link, sealing, ttl_s * 1000, room
        self._keep = link.client.register_script(_KEEP)

    async def put(self, tenant: str, name: str, record: bytes) -> None:
        """Store a record; one of the same name is the same document.

        Raises:
            Conflict: The tenant has too many.
        """
        stem = _stem(tenant)
        place = f"{stem}{name}"
        async with self._redis() as redis:
            known = await redis.exists(place)
            if not known and len(await self._alive(redis, stem)) >= MOST:
                raise Conflict(f"There are {MOST:,} documents already.", hint="Delete some.")
            async with redis.pipeline(transaction=True) as pipe:
                pipe.set(place, self._sealing.seal(record, tenant, place), px=self._ttl_ms)
                pipe.zadd(f"{stem}index", {name: time.time()}, nx=True)
                pipe.pexpire(f"{stem}index", self._ttl_ms)
                await pipe.execute()

    async def get(self, tenant: str, name: str) -> bytes:
        """A record; it counts as used now.

        Raises:
            NotFound: The tenant has no such document.
        """
        stem = _stem(tenant)
        place = f"{stem}{_checked(name)}"
        async with self._redis() as redis, redis.pipeline(transaction=True) as pipe:
            pipe.getex(place, px=self._ttl_ms)
            pipe.pexpire(f"{stem}index", self._ttl_ms)
            sealed = (await pipe.execute())[0]
        if sealed is None:
            hint = "POST /v1/documents stores one; unused ones are forgotten after a while."
            raise NotFound(f"There is no document {name}.", hint=hint, field="document_id")
        return self._sealing.open(sealed, tenant, place)

    async def names(self, tenant: str) -> list[str]:
        """The tenant's documents, newest first."""
        async with self._redis() as redis:
            return (await self._alive(redis, _stem(tenant)))[::-1]

    async def delete(self, tenant: str, name: str) -> None:
        """Forget a document.

        Raises:
            NotFound: The tenant has no such document.
        """
        await self.get(tenant, name)
        stem = _stem(tenant)
        async with self._redis() as redis:
            await redis.delete(f"{stem}{name}", f"{stem}{name}:blocks")
            await redis.zrem(f"{stem}index", name)
            await redis.zrem(f"{stem}used", name)

    async def keep_blocks(self, tenant: str, name: str, blocks: bytes) -> bool:
        """Keep what was made of a document, if there is room and the document is still there."""
        stem = _stem(tenant)
        place = f"{stem}{name}:blocks"
        sealed = await asyncio.to_thread(self._sealing.seal, blocks, tenant, place)
        if len(sealed) > self.room:
            return False
        keys, args = [f"{stem}{name}", place, f"{stem}used", stem], [sealed, self._ttl_ms, time.time(), name, self.room]
        async with self._redis():
            return bool(await self._keep(keys=keys, args=args))

    async def blocks(self, tenant: str, name: str) -> bytes | None:
        """What was made of a document, if it is kept; it counts as used now.

        Raises:
            Conflict: It is damaged, or was sealed under another key.
        """
        place = f"{_stem(tenant)}{name}:blocks"
        sealed = await self._used(tenant, name, "GETEX", place, "PX", self._ttl_ms)
        return None if sealed is None else await asyncio.to_thread(self._sealing.open, sealed, tenant, place)

    async def touch_blocks(self, tenant: str, name: str) -> bool:
        """Whether what was made of a document is kept; it counts as used now."""
        return bool(await self._used(tenant, name, "PEXPIRE", f"{_stem(tenant)}{name}:blocks", self._ttl_ms))

    async def _used(self, tenant: str, name: str, *command: str | int) -> Any:
        """What a command says, while blocks move to the end of those that go."""
        used = f"{_stem(tenant)}used"
        async with self._redis() as redis, redis.pipeline(transaction=True) as pipe:
            pipe.execute_command(*command)
            pipe.zadd(used, {name: time.time()}, xx=True)
            pipe.pexpire(used, self._ttl_ms)
            return (await pipe.execute())[0]

    async def _alive(self, redis: Any, stem: str) -> list[str]:
        """Names in the order in which they came, without those whose time is over."""
        names = [name.decode() for name in await redis.zrange(f"{stem}index", 0, -1)]
        there = [bool(await redis.exists(f"{stem}{name}")) for name in names]
        if gone := [name for name, is_there in zip(names, there, strict=True) if not is_there]:
            await redis.zrem(f"{stem}index", *gone)
        return [name for name in names if name not in gone]

    @asynccontextmanager
    async def _redis(self) -> AsyncIterator[Any]:
        try:
            with translate_redis_errors():
                yield self._link.client
        except NotReady as error:
            detail = "Documents can't be reached: Redis is away or takes no writes."
            raise NotReady(detail, hint=error.hint, retry_after=1) from error


def _stem(tenant: str) -> str:
    """What a tenant's keys begin with; the tenant as a digest, because nobody checks its letters."""
    return f"{{fovea:documents:{sha256(tenant.encode()).hexdigest()[:24]}}}:"


def _checked(name: str) -> str:
    if not _ID.fullmatch(name):
        raise InvalidOption("A document's id looks like doc_0123456789abcdef01234567.", field="document_id")
    return name
