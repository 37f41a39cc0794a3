"""Gateway-only access: a replica answers callers that know the secret of its run, and nobody else.

The gateway says whose request it is (`x-fovea-tenant`), so whoever reached a replica's port could be any tenant. With
`replica_secret` set, HTTP and gRPC calls must carry it; health and metrics stay open. Without one a replica serves its
own machine, and refuses a `Host` that a foreign web page may have sent (DNS rebinding).
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import grpc
from starlette.types import ASGIApp, Receive, Scope, Send

from fovea.api.replica import SECRET_HEADER
from fovea.errors import FoveaError, PermissionDenied, Unauthenticated
from shared.local_names import without_port
from shared.serving.http.error_rendering import render
from shared.settings import Settings

_OPEN_PATHS = frozenset({"/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})
_OPEN_SERVICES = ("/grpc.health.v1.Health/",)

_REFUSAL = "This replica answers to its gateway only."
_HINT = "Send the request to the gateway. Replica and gateway must have the same FOVEA_REPLICA_SECRET."


class GatewayOnlyMiddleware:
    """ASGI middleware around a replica's app."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._secrets = settings.replica_secrets
        self._names = frozenset({"localhost", settings.replica_host, settings.replica_advertised_host})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _OPEN_PATHS:
            headers = dict(scope["headers"])
            error: FoveaError | None = None
            if self._secrets and not _is_known(headers.get(SECRET_HEADER.encode()), self._secrets):
                error = Unauthenticated(_REFUSAL, hint=_HINT)
            elif not self._secrets and not self._is_ours(headers.get(b"host", b"localhost").decode("latin-1")):
                error = PermissionDenied("This replica is not called by that name.", hint=_HINT)
            if error is not None:
                await render(scope, error, {"connection": "close"})(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _is_ours(self, host: str) -> bool:
        """Whether a `Host` names this replica: by an address, which no foreign page can be found under, or its name."""
        name = without_port(host)
        if name.lower() in self._names:
            return True
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True


class GatewayOnlyInterceptor(grpc.aio.ServerInterceptor):
    """gRPC interceptor with the same rule; it sees the metadata before any message is read."""

    def __init__(self, settings: Settings) -> None:
        self._secrets = settings.replica_secrets

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Pass on what may come in."""
        sent = dict(handler_call_details.invocation_metadata or ()).get(SECRET_HEADER)
        is_open = not self._secrets or handler_call_details.method.startswith(_OPEN_SERVICES)
        if is_open or _is_known(sent.encode() if isinstance(sent, str) else sent, self._secrets):
            return await continuation(handler_call_details)
        return grpc.stream_stream_rpc_method_handler(_abort)


async def _abort(_messages: Any, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, f"{_REFUSAL} {_HINT}")


def _is_known(sent: bytes | None, secrets: Iterable[str]) -> bool:
    return any(hmac.compare_digest(sent or b"", secret.encode()) for secret in secrets)
