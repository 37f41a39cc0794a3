"""Documents in Redis: texts that were read once, sealed for their tenant, and in which order they came.

    {fovea:documents:<tenant>}:index  sorted set  id → when it was stored
    {fovea:documents:<tenant>}:<id>   string      the sealed record

What a model made of a document is kept beside the model, not here: it can be read again. Knows records as bytes.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any

from services.llm_longctx.sealing import Sealing
from shared.errors import Conflict, InvalidOption, NotFound, NotReady
from shared.jobs.link import Link, reachable

__all__ = ["MOST", "DocumentStore"]

MOST = 1000
"""Documents of a tenant."""

_ID = re.compile(r"doc_[a-f0-9]{24}")


class DocumentStore:
    """The documents of all tenants.

    Args:
        link: Redis.
        sealing: Seals records.
        ttl_s: How long an unused document is kept.
    """

    def __init__(self, link: Link, sealing: Sealing, ttl_s: int) -> None:
        self._link, self._sealing, self._ttl_ms = link, sealing, ttl_s * 1000

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
            await redis.delete(f"{stem}{name}")
            await redis.zrem(f"{stem}index", name)

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
            with reachable():
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
