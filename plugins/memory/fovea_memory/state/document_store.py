"""Document store in Redis: encrypted texts, their order, and the cached blocks of landmark models.

    {fovea:documents:<tenant>}:index        sorted set  id → when it was stored
    {fovea:documents:<tenant>}:<id>         string      the encrypted record
    {fovea:documents:<tenant>}:<id>:blocks  string      its encrypted blocks, if they are kept
    {fovea:documents:<tenant>}:used         sorted set  id → when its blocks were last used

Blocks of documents are kept up to a size per tenant, the least recently used going first: a model can make them again.
Knows records and blocks as bytes.
"""

import asyncio
import re
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from fovea.errors import Conflict, InvalidOption, NotFound, RateLimited
from fovea_memory.state.encryption import TenantCipher
from fovea_memory.state.session_store import digest_tenant, reach_redis
from shared.jobs.redis_client import RedisClient

MAX_DOCUMENTS = 1000
"""Most documents of a tenant."""

_ID = re.compile(r"doc_[a-f0-9]{24}")

_PUT_BLOCKS_SCRIPT = """
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
"""Store the blocks of a document that still exists; evict the tenant's least recently used blocks that do not fit."""


class DocumentStore:
    """The documents of all tenants.

    Args:
        client: Redis.
        cipher: Encrypts records and blocks.
        ttl_s: How long an unused document is kept.
        max_blocks_bytes: Most bytes of blocks that are kept per tenant.
        quota_bytes: Most bytes of documents that are kept per tenant.
    """

    def __init__(
        self, client: RedisClient, cipher: TenantCipher, ttl_s: int, max_blocks_bytes: int, quota_bytes: int = 2**40
    ) -> None:
        self._redis = partial(reach_redis, client, "Documents")
        self._cipher, self._ttl_ms, self._quota_bytes = cipher, ttl_s * 1000, quota_bytes
        self.max_blocks_bytes = max_blocks_bytes
        self._put_blocks = client.client.register_script(_PUT_BLOCKS_SCRIPT)

    async def put(self, tenant: str, name: str, record: bytes) -> None:
        """Store a record; one of the same name is the same document.

        Raises:
            Conflict: The tenant has too many.
            RateLimited: The tenant's documents hold as many bytes as they may.
        """
        prefix = _key_prefix(tenant)
        key = f"{prefix}{name}"
        async with self._redis() as redis:
            sizes = await self._live_sizes(redis, prefix)
            sizes.pop(name, None)  # it is written over, with white space that its tokens don't tell maybe
            self._require_room(sizes, len(record))
            async with redis.pipeline(transaction=True) as pipe:
                pipe.set(key, self._cipher.encrypt(record, tenant, key), px=self._ttl_ms)
                pipe.zadd(f"{prefix}index", {name: time.time()}, nx=True)
                pipe.pexpire(f"{prefix}index", self._ttl_ms)
                await pipe.execute()

    async def get(self, tenant: str, name: str, *, uses: bool = True) -> bytes:
        """A record; it counts as used now, unless it is only listed.

        Raises:
            NotFound: The tenant has no such document.
        """
        prefix = _key_prefix(tenant)
        key = f"{prefix}{_check_id(name)}"
        async with self._redis() as redis, redis.pipeline(transaction=True) as pipe:
            pipe.getex(key, px=self._ttl_ms if uses else None)
            pipe.pexpire(f"{prefix}index", self._ttl_ms)
            encrypted = (await pipe.execute())[0]
        if encrypted is None:
            hint = "POST /v1/documents stores one; unused ones expire."
            raise NotFound(f"There is no document {name}.", hint=hint, field="document_id")
        return self._cipher.decrypt(encrypted, tenant, key)

    async def list_ids(self, tenant: str) -> list[str]:
        """Ids of the tenant's documents, newest first."""
        async with self._redis() as redis:
            return [*await self._live_sizes(redis, _key_prefix(tenant))][::-1]

    async def delete(self, tenant: str, name: str) -> None:
        """Delete a document.

        Raises:
            NotFound: The tenant has no such document.
        """
        await self.get(tenant, name)
        prefix = _key_prefix(tenant)
        async with self._redis() as redis:
            await redis.delete(f"{prefix}{name}", f"{prefix}{name}:blocks")
            await redis.zrem(f"{prefix}index", name)
            await redis.zrem(f"{prefix}used", name)

    async def put_blocks(self, tenant: str, name: str, blocks: bytes) -> bool:
        """Store the blocks of a document, if they fit and the document still exists; whether they are stored."""
        prefix = _key_prefix(tenant)
        key = f"{prefix}{name}:blocks"
        encrypted = await asyncio.to_thread(self._cipher.encrypt, blocks, tenant, key)
        if len(encrypted) > self.max_blocks_bytes:
            return False
        keys = [f"{prefix}{name}", key, f"{prefix}used", prefix]
        args = [encrypted, self._ttl_ms, time.time(), name, self.max_blocks_bytes]
        async with self._redis():
            return bool(await self._put_blocks(keys=keys, args=args))

    async def get_blocks(self, tenant: str, name: str) -> bytes | None:
        """The blocks of a document, if they are stored; they count as used now.

        Raises:
            Conflict: They are damaged, or were encrypted under another key.
        """
        key = f"{_key_prefix(tenant)}{name}:blocks"
        encrypted = await self._touch_and_run(tenant, name, "GETEX", key, "PX", self._ttl_ms)
        return None if encrypted is None else await asyncio.to_thread(self._cipher.decrypt, encrypted, tenant, key)

    async def touch_blocks(self, tenant: str, name: str) -> bool:
        """Whether the blocks of a document are stored; they count as used now."""
        key = f"{_key_prefix(tenant)}{name}:blocks"
        return bool(await self._touch_and_run(tenant, name, "PEXPIRE", key, self._ttl_ms))

    async def _touch_and_run(self, tenant: str, name: str, *command: str | int) -> Any:
        """The reply to a command on a document's blocks, which count as used now."""
        used = f"{_key_prefix(tenant)}used"
        async with self._redis() as redis, redis.pipeline(transaction=True) as pipe:
            pipe.execute_command(*command)
            pipe.zadd(used, {name: time.time()}, xx=True)
            pipe.pexpire(used, self._ttl_ms)
            return (await pipe.execute())[0]

    def _require_room(self, sizes: Mapping[str, int], more: int) -> None:
        if len(sizes) >= MAX_DOCUMENTS:
            raise Conflict(f"There are {MAX_DOCUMENTS:,} documents already.", hint="Delete some.")
        if (held := sum(sizes.values())) + more > self._quota_bytes:
            detail = f"Your documents hold {held:,} bytes of at most {self._quota_bytes:,}."
            raise RateLimited(detail, hint="Delete some (DELETE /v1/documents/{id}), or wait until unused ones expire.")

    async def _live_sizes(self, redis: Any, prefix: str) -> dict[str, int]:
        """Id → bytes of documents in the order of storing, without expired ones."""
        names = [name.decode() for name in await redis.zrange(f"{prefix}index", 0, -1)]
        async with redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.strlen(f"{prefix}{name}")
            sizes = dict(zip(names, await pipe.execute(), strict=True))
        if expired := [name for name, size in sizes.items() if not size]:
            await redis.zrem(f"{prefix}index", *expired)
        return {name: size for name, size in sizes.items() if size}


def _key_prefix(tenant: str) -> str:
    """Prefix of a tenant's Redis keys."""
    return f"{{fovea:documents:{digest_tenant(tenant)}}}:"


def _check_id(name: str) -> str:
    if not _ID.fullmatch(name):
        raise InvalidOption("A document's id looks like doc_0123456789abcdef01234567.", field="document_id")
    return name
