"""Local-only rule: a gateway without keys listens on loopback and refuses requests that a foreign web page made.

A page of some web site can make a browser on this machine send requests to a loopback port. Two headers reveal it: a
foreign `Host` (DNS rebinding) and a foreign `Origin`. Knows nothing about keys.
"""

from __future__ import annotations

from fovea.errors import PermissionDenied
from services.gateway.http.request_context import RequestContext
from shared.local_names import is_loopback, without_port

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def require_local_request(ctx: RequestContext, own: str) -> None:
    """Check that a request was not made by a foreign web page; the address `own` is a valid `Host`, too.

    Raises PermissionDenied: `Host` is not a loopback name, or `Origin` is another site and the request changes
    something.
    """
    host = ctx.headers.get(b"host", b"localhost").decode("latin-1")
    name = without_port(host)
    if name != own and not is_loopback(name):
        detail = f"This gateway serves its own machine only, and {name[:100]!r} is not one of its names."
        raise PermissionDenied(detail, hint="Use http://127.0.0.1, or run with FOVEA_AUTH=keys.")
    origin = ctx.headers.get(b"origin")
    if origin is None or ctx.method in _SAFE_METHODS:
        return
    if origin.decode("latin-1").partition("://")[2] != host:
        detail = "The request was sent by a page of another site."
        raise PermissionDenied(detail, hint="Run with FOVEA_AUTH=keys to serve other sites.")
