"""Local-only rule: a gateway without keys listens on loopback and refuses requests that a foreign web page made.

A page of some web site can make a browser on this machine send requests to a loopback port. Two headers reveal it: a
foreign `Host` (DNS rebinding) and a foreign `Origin`. Knows nothing about keys.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache

from services.gateway.http.request_context import RequestContext
from shared.errors import PermissionDenied

__all__ = ["is_loopback", "require_local_request"]

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


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


def require_local_request(ctx: RequestContext, own: str) -> None:
    """Check that a request was not made by a foreign web page.

    Args:
        ctx: The request.
        own: The address that the gateway listens on, which is a valid `Host` too.

    Raises:
        PermissionDenied: `Host` is not a loopback name, or `Origin` is another site and the request changes something.
    """
    host = ctx.headers.get(b"host", b"localhost").decode("latin-1")
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    if name != own and not is_loopback(name):
        detail = f"This gateway serves its own machine only, and {name[:100]!r} is not one of its names."
        raise PermissionDenied(detail, hint="Use http://127.0.0.1, or run with FOVEA_AUTH=keys.")
    origin = ctx.headers.get(b"origin")
    if origin is None or ctx.method in _SAFE_METHODS:
        return
    if origin.decode("latin-1").partition("://")[2] != host:
        detail = "The request was sent by a page of another site."
        raise PermissionDenied(detail, hint="Run with FOVEA_AUTH=keys to serve other sites.")
