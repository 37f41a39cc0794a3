"""Redis stores of sessions and documents: connected on first use, closed with the app."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request

from fovea.errors import NotReady
from fovea_memory.state.document_store import DocumentStore
from fovea_memory.state.encryption import TenantCipher, load_master_key
from fovea_memory.state.session_store import SessionStore
from shared.jobs.redis_client import RedisClient
from shared.settings import Settings


class RedisStores:
    """The session store and the document store of one process, on one connection pool."""

    def __init__(self, settings: Settings) -> None:
        if settings.redis_url is None:
            detail = "Sessions and documents need Redis, and this service runs without one."
            raise NotReady(detail, hint="Set FOVEA_REDIS_URL, or start it with `fovea up`.")
        configured = settings.session_key.get_secret_value() if settings.session_key else None
        cipher = TenantCipher(load_master_key(configured, settings.data_dir))
        self._redis = RedisClient(settings.redis_url)
        ttl_s = settings.session_ttl_s
        self.sessions = SessionStore(self._redis, cipher, ttl_s, settings.session_quota_bytes)
        self.documents = DocumentStore(
            self._redis, cipher, ttl_s, settings.document_cache_max_bytes, settings.document_quota_bytes
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.close()


def get_stores(request: Request) -> RedisStores:
    """The stores of the app that serves this request.

    Raises:
        NotReady: There is no Redis.
    """
    state = request.app.state
    if getattr(state, "stores", None) is None:
        state.stores = RedisStores(state.settings)
    stores: RedisStores = state.stores
    return stores


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Close the stores with the app."""
    yield
    if (stores := getattr(app.state, "stores", None)) is not None:
        await stores.close()
