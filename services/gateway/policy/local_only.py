"""What keeps a gateway without keys to its own machine: a loopback address, and requests that were meant for it.

A page of some web site can make a browser on this machine send requests to a loopback port. Two headers give that
away: a `Host` that is not ours (DNS rebinding) and an `Origin` that is not ours. Knows nothing about keys.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache

from services.gateway.http.request_context import RequestContext
from shared.errors import PermissionDenied

__all__ = ["is_loopback", "require_local_request"]

_READS = frozenset({"GET", "HEAD", "OPTIONS"})


@lru_cache(maxsize=64)
def is_loopback(host: str) -> bool:
    """Whether a host name or address can only mean this machine."""
    name = host.strip("[]").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def require_local_request(exchange: RequestContext, own: str) -> None:
    """Refuse what a foreign web page had a browser send.

    Args:
        exchange: The request.
        own: The address we listen on, which is fine as `Host` too.

    Raises:
        PermissionDenied: `Host` is no loopback name, or `Origin` is another site and the request changes something.
    """
    host = exchange.headers.get(b"host", b"localhost").decode("latin-1")
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    if name != own and not is_loopback(name):
        detail = f"This gateway serves its own machine only, and {name[:100]!r} is not a name of it."
        raise PermissionDenied(detail, hint="Use http://127.0.0.1, or run with FOVEA_AUTH=keys.")
    origin = exchange.headers.get(b"origin")
    if origin is None or exchange.method in _READS:
        return
    if origin.decode("latin-1").partition("://")[2] != host:
        detail = "The request was sent by a page of another site."
        raise PermissionDenied(detail, hint="Run with FOVEA_AUTH=keys to serve other sites.")
