"""`python -m services.gateway`: the HTTP server, and beside it in the same event loop the gRPC server.

Knows in which order they start and stop, and what a wrong setting looks like.
"""

from __future__ import annotations

import socket
import sys

import uvloop

from services.gateway.app import build_gateway
from services.gateway.grpc.server import serve_grpc
from services.gateway.policy.local_only import is_loopback
from services.gateway.server import create_server
from shared.settings import Settings, settings
from shared.telemetry import configure_logs, log

__all__ = ["main"]


class NotListening(Exception):
    """An address that can't be listened on; the text says which, why, and what to try."""


def main() -> int:
    """Serve until told to stop; returns the exit status."""
    chosen = settings()
    configure_logs(chosen.log_level, chosen.log_format)
    try:
        require_safe_address(chosen)
        uvloop.run(serve(chosen))
    except NotListening as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def require_safe_address(chosen: Settings) -> None:
    """Check that these settings may be served.

    Raises:
        NotListening: Without keys, on an address that other machines can reach.
    """
    if chosen.auth == "insecure-local" and not is_loopback(chosen.host):
        message = (
            f"FOVEA_AUTH=insecure-local serves this machine only, and FOVEA_HOST={chosen.host} does not: "
            "set FOVEA_AUTH=keys (keys are made with `fovea keys add`), or FOVEA_HOST=127.0.0.1."
        )
        raise NotListening(message)


def open_listener(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        NotListening: The port is taken, or the address is not this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise NotListening(_taken(host, port, error, "FOVEA_HTTP_PORT")) from error


async def serve(chosen: Settings) -> None:
    """Serve until a signal comes; what has begun is finished first, within `drain_s`.

    Raises:
        NotListening: A port is taken, or the address is not this machine's.
    """
    door = open_listener(chosen.host, chosen.http_port)
    app = build_gateway(chosen)
    try:
        tensors, port = await serve_grpc(app.state.gateway, chosen.host, chosen.grpc_port)
    except OSError as error:
        raise NotListening(_taken(chosen.host, chosen.grpc_port, error, "FOVEA_GRPC_PORT")) from error
    http = "http://{}:{}".format(*door.getsockname()[:2])
    log().info("the gateway listens", http=http, grpc=f"{chosen.host}:{port}", auth=chosen.auth)
    try:
        await create_server(app, chosen).serve(sockets=[door])
    finally:
        await tensors.stop(chosen.drain_s)


def _taken(host: str, port: int, error: OSError, setting: str) -> str:
    why = str(error.strerror).partition(" (")[0]
    return f"The gateway can't listen on {host}:{port}: {why}. Set {setting} to a free port."


if __name__ == "__main__":
    sys.exit(main())
