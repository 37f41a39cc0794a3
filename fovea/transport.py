"""How both clients reach the gateway: address, key, time-outs. Knows httpx2; sends nothing by itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import httpx2

from fovea.errors import translate_errors

__all__ = ["LOCAL", "Address"]

LOCAL = "http://127.0.0.1:8080"
"""Where `make run` listens."""


@dataclass(frozen=True, slots=True)
class Address:
    """A gateway and what a caller says of itself.

    Attributes:
        url: Scheme, host and port.
        key: API key, where the gateway demands one.
        timeout: Seconds that one answer may take.
    """

    url: str = LOCAL
    key: str | None = field(default=None, repr=False)
    timeout: float = 300.0

    def options(self) -> dict[str, Any]:
        """Arguments of an httpx2 client that talks to this gateway.

        Raises:
            Malformed: The URL is none.
        """
        with translate_errors(self.url):
            url = httpx2.URL(self.url)
            if url.scheme not in {"http", "https"} or not url.host:
                raise httpx2.UnsupportedProtocol(self.url)
        headers = {"user-agent": "fovea-sdk", **({"authorization": f"Bearer {self.key}"} if self.key else {})}
        return {
            "base_url": url,
            "headers": headers,
            "timeout": httpx2.Timeout(self.timeout, connect=5.0, pool=None),
            # A proxy of the outer world can't reach this machine's own loopback.
            "trust_env": url.host not in {"127.0.0.1", "localhost", "::1"},
        }
