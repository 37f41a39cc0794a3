"""Connection settings of both clients: address, API key and timeouts of the gateway."""

from typing import Any

import httpx2

from fovea.error_responses import translate_errors
from fovea.errors import Unauthenticated

LOCAL = "http://127.0.0.1:8080"
"""Where `make run` listens."""


def build_client_options(url: str, key: str | None = None, timeout: float = 300.0) -> dict[str, Any]:
    """Build the arguments of an httpx2 client for a gateway; `timeout` is the longest wait for one answer, seconds.

    Raises Malformed: the URL is not valid; Unauthenticated: the key can't be one.
    """
    with translate_errors(url):
        parsed = httpx2.URL(str(url))
        if parsed.scheme not in {"http", "https"} or not parsed.host:
            raise httpx2.UnsupportedProtocol(url)
    key = (key or "").strip()  # files and Secrets end with a line break
    if not (key.isascii() and key.isprintable()):
        raise Unauthenticated("The API key has characters that no key has.", hint="Copy it again.")
    return {
        "base_url": parsed,
        "headers": {"user-agent": "fovea-sdk", **({"authorization": f"Bearer {key}"} if key else {})},
        "timeout": httpx2.Timeout(timeout, connect=5.0, pool=None),
        "trust_env": parsed.scheme == "https" or parsed.host not in {"127.0.0.1", "localhost", "::1"},
        "mounts": dict.fromkeys(("all://127.0.0.1", "all://localhost", "all://[::1]")),  # no proxy can reach these
    }
