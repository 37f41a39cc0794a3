"""Connection settings of both clients: address, API key and timeouts of the gateway."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import httpx2

from fovea.error_responses import translate_errors

LOCAL = "http://127.0.0.1:8080"
"""Where `make run` listens."""


@dataclass(frozen=True, slots=True)
class Address:
    """The address of a gateway and the key to use there.

    Attributes:
        url: Scheme, host and port.
        key: API key, where the gateway requires one.
        timeout: Longest wait for one answer, seconds.
    """

    url: str = LOCAL
    key: str | None = field(default=None, repr=False)
    timeout: float = 300.0

    def client_options(self) -> dict[str, Any]:
        """Build the arguments of an httpx2 client for this gateway.

        Raises:
            Malformed: The URL is not valid.
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
            # A proxy can't reach this machine's loopback address.
            "trust_env": url.host not in {"127.0.0.1", "localhost", "::1"},
        }
