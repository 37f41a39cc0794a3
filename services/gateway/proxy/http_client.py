"""HTTP client to the replicas: pooled connections, no cookies, no decoding, bodies as they arrive.

Knows nothing about retries or about where answers go.
"""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
from aiohttp.client import _RequestContextManager
from multidict import CIMultiDict, istr
from yarl import URL

from fovea.api.replica import STREAM_HEADER
from services.gateway.http.request_context import RequestContext, build_request_headers
from services.gateway.proxy.replayable_body import ReplayableBody
from services.gateway.routing.replica import Replica

CONNECT_TIMEOUT_S = 3.0
"""Longest wait for a connection to a replica."""

IDLE_CONNECTION_S = 4.0
"""How long an idle connection is kept; less than uvicorn's five seconds, so that this side closes first."""

DOCUMENT_TIMEOUT_S = 2.0
"""Longest wait for a small document."""

ASK_TIMEOUT_S = 10.0
"""Longest wait for a replica that is asked whether it serves on."""

_NO_AUTO_HEADERS = (istr("User-Agent"), istr("Accept"), istr("Accept-Encoding"), istr("Content-Type"))


class UpstreamClient:
    """Sends requests to replicas. The session opens at first use, inside the loop that uses it."""

    def __init__(self, credentials: Mapping[str, str] | None = None) -> None:
        """Open nothing yet; `credentials` are headers by which replicas know their gateway."""
        self._credentials = dict(credentials or {})
        self._session: aiohttp.ClientSession | None = None

    async def stop(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    def request(self, ctx: RequestContext, replica: Replica, body: ReplayableBody) -> _RequestContextManager:
        """Send a request to a replica; `async with` gives its answer, unread."""
        headers = build_request_headers(ctx)
        headers["x-fovea-deadline-ms"] = str(max(int(ctx.left_s * 1000), 1))
        whole_s = ctx.ends_at - asyncio.get_running_loop().time()
        headers[STREAM_HEADER] = "0" if whole_s == math.inf else str(max(int(whole_s * 1000), 1))
        if body.length and not body.complete:
            headers["content-length"] = str(body.length)
        payload = None if body.length == 0 else body.payload()
        return self.request_copy(ctx, replica, headers, payload)

    def request_copy(
        self, ctx: RequestContext, replica: Replica, headers: CIMultiDict[str], raw: bytes | AsyncIterator[bytes] | None
    ) -> _RequestContextManager:
        """Send a copy of a request, with headers of its own; `async with` gives its answer, unread."""
        url = URL(replica.record.http + ctx.raw_target, encoded=True)
        return self._get_session().request(
            ctx.method, url, headers=headers, data=raw, allow_redirects=False, skip_auto_headers=_NO_AUTO_HEADERS
        )

    async def is_serving(self, replica: Replica) -> bool:
        """Ask a replica whether it serves on, with patience: it may be short of processor time."""
        url = replica.record.http + "/readyz"
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S), self._get_session().get(url) as response:
                document = await response.json()
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            return False
        return isinstance(document, dict) and document.get("service") == replica.record.service

    async def fetch_json(self, http: str, path: str, tenant: str | None = None, method: str = "GET") -> Any:
        """Fetch a small JSON document, as a tenant sees it; None when it does not come in two seconds."""
        text = await self.fetch_text(http, path, tenant, method)
        try:
            return None if text is None else json.loads(text)
        except ValueError:
            return None

    async def fetch_text(self, http: str, path: str, tenant: str | None = None, method: str = "GET") -> str | None:
        """Fetch a small text of the replica at a base URL; None when it does not arrive within two seconds."""
        headers = {"accept-encoding": "identity"} | ({} if tenant is None else {"x-fovea-tenant": tenant})
        try:
            async with (
                asyncio.timeout(DOCUMENT_TIMEOUT_S),
                self._get_session().request(method, http + path, headers=headers) as response,
            ):
                return await response.text("utf8") if response.ok else None
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            return None

    def _get_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_CONNECTION_S, ttl_dns_cache=10),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                headers=self._credentials,
            )
        return self._session
