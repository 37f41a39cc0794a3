"""What is kept in Redis for callers, sessions and documents: opened when first asked for, closed with the app."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request

from services.llm_longctx.state.document_store import DocumentStore
from services.llm_longctx.state.encryption import Sealing, master_key
from services.llm_longctx.state.session_store import SessionStore
from shared.errors import NotReady
from shared.jobs.redis_client import RedisClient
from shared.settings import Settings

__all__ = ["Stores", "lifespan", "stores_of", "tenant_of"]


class Stores:
    """Sessions and documents of one process, on one connection."""

    def __init__(self, settings: Settings) -> None:
        if settings.redis_url is None:
            detail = "Sessions and documents need Redis, and this service was started without one."
            raise NotReady(detail, hint="Set FOVEA_REDIS_URL, or start it with `fovea up`.")
        given = settings.session_key.get_secret_value() if settings.session_key else None
        sealing = Sealing(master_key(given, settings.data_dir))
        self._link = RedisClient(settings.redis_url)
        self.sessions = SessionStore(self._link, sealing, settings.session_ttl_s)
        self.documents = DocumentStore(self._link, sealing, settings.session_ttl_s, settings.document_cache_max_bytes)

    async def close(self) -> None:
        """Drop all connections."""
        await self._link.close()


def stores_of(request: Request) -> Stores:
    """The stores of the app that got this request.

    Raises:
        NotReady: There is no Redis.
    """
    state = request.app.state
    if getattr(state, "stores", None) is None:
        state.stores = Stores(state.settings)
    found: Stores = state.stores
    return found


def tenant_of(request: Request) -> str:
    """Whose request this is, as the gateway says."""
    return request.headers.get("x-fovea-tenant", "local")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Close the stores with the app."""
    yield
    if (stores := getattr(app.state, "stores", None)) is not None:
        await stores.close()
