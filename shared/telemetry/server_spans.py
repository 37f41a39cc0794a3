"""Server spans: one per request that is worth a trace, with the attributes of OpenTelemetry's semantic conventions."""

from shared.telemetry.spans import NO_SPAN, Span, span

_UNTRACED = frozenset((
    "/livez", "/readyz", "/health", "/ping", "/version", "/metrics", "/metrics/services", "/v2/health/live",
    "/v2/health/ready",
))  # fmt: skip
"""Paths that probes and scrapers ask for all the time."""

_UNTRACED_METHODS = frozenset({"ServerLive", "ServerReady", "ModelReady"})


def begin_http_span(method: str, path: str, parent: str, request_id: str) -> Span:
    """Begin the span of an HTTP request; `parent` is the trace parent that came with it."""
    if path in _UNTRACED:
        return NO_SPAN
    found = {"http.request.method": method, "url.path": path[:200], "fovea.request_id": request_id}
    return span(method, found, kind="server", parent=parent)


def finish_http_span(server: Span, method: str, route: str, status: int) -> None:
    """Name a request's span by its route, and say how it was answered."""
    server.set_name(f"{method} {route}")
    server.set_attributes({"http.route": route, "http.response.status_code": status or None})
    if status >= 500:
        server.fail(str(status))


def begin_rpc_span(service: str, method: str, parent: str, request_id: str) -> Span:
    """Begin the span of a gRPC call; `parent` is the trace parent that came with it."""
    if method in _UNTRACED_METHODS:
        return NO_SPAN
    found = {"rpc.system.name": "grpc", "rpc.method": f"{service}/{method}", "fovea.request_id": request_id}
    return span(f"{service}/{method}", found, kind="server", parent=parent)


def finish_rpc_span(server: Span, status: str) -> None:
    """Say with which status a gRPC call ended."""
    server.set_attributes({"rpc.response.status_code": status})
    if status in {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}:
        server.fail(status)
