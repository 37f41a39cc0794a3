"""The one HTTP client towards replicas: pooled connections, no cookies, no decoding, bodies as they come.

Knows nothing about retries or about where answers go.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
from aiohttp.client import _RequestContextManager
from multidict import istr
from yarl import URL

from services.gateway.http.request_context import RequestContext, build_request_headers
from services.gateway.proxy.replayable_body import ReplayableBody
from services.gateway.routing.replica_registry import Replica

__all__ = ["UpstreamClient"]

CONNECT_TIMEOUT_S = 3.0
"""Longest wait for a connection to a replica."""

IDLE_CONNECTION_S = 4.0
"""How long an idle connection is kept; less than uvicorn's five seconds, so that we hang up first."""

DOCUMENT_TIMEOUT_S = 2.0
"""Longest wait for a small document."""

_AUTOMATIC = (istr("User-Agent"), istr("Accept"), istr("Accept-Encoding"), istr("Content-Type"))


class UpstreamClient:
    """Sends requests to replicas. The session opens at first use, inside the loop that uses it."""

    def __init__(self) -> None:
        """Open nothing yet."""
        self._session: aiohttp.ClientSession | None = None

    async def stop(self) -> None:
        """Hang up."""
        if self._session is not None:
            await self._session.close()

    def request(self, exchange: RequestContext, target: Replica, body: ReplayableBody) -> _RequestContextManager:
        """Send a request to a replica; `async with` gives its answer, unread."""
        headers = build_request_headers(exchange)
        headers["x-fovea-deadline-ms"] = str(max(int(exchange.left_s * 1000), 1))
        if body.length and not body.complete:
            headers["content-length"] = str(body.length)
        payload = None if body.length == 0 else body.payload()
        url = URL(target.replica.http + exchange.target, encoded=True)
        return self._opened().request(
            exchange.method, url, headers=headers, data=payload, allow_redirects=False, skip_auto_headers=_AUTOMATIC
        )

    async def json(self, target: Replica, path: str) -> Any:
        """A small JSON document of a replica, or None when it can't be had within two seconds."""
        text = await self.text(target, path)
        try:
            return None if text is None else json.loads(text)
        except ValueError:
            return None

    async def text(self, target: Replica, path: str) -> str | None:
        """A small text of a replica, or None when it can't be had within two seconds."""
        try:
            async with (
                asyncio.timeout(DOCUMENT_TIMEOUT_S),
                self._opened().get(target.replica.http + path, headers={"accept-encoding": "identity"}) as response,
            ):
                return await response.text("utf8") if response.ok else None
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            return None

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_CONNECTION_S, ttl_dns_cache=10),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        return self._session
