"""`python -m services.gateway`: runs the HTTP server and the gRPC server in one event loop."""

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator

import uvloop

from services.gateway.app import build_gateway
from services.gateway.gateway import Gateway
from services.gateway.grpc.server import serve_grpc
from services.gateway.server import create_metrics_server, create_server
from shared.local_names import is_loopback
from shared.settings import Settings, settings
from shared.storage.private_files import make_files_private
from shared.telemetry import configure_logs, configure_tracing, log, shut_down_tracing


class CannotListen(Exception):
    """The gateway can't listen on its address; the text says which, why, and what to try."""


def main() -> int:
    """Serve until a signal arrives; returns the exit status."""
    config = settings()
    configure_logs(config.log_level, config.log_format)
    configure_tracing(config.traces_endpoint, "fovea-gateway")
    make_files_private(config.data_dir)
    try:
        require_safe_address(config)
        uvloop.run(serve(config))
    except CannotListen as error:
        sys.stderr.write(f"{error}\n")
        return 2
    finally:
        shut_down_tracing()
    return 0


def require_safe_address(config: Settings) -> None:
    """Check that a gateway without keys listens on loopback only.

    Raises CannotListen: there are no keys, and other machines can reach the address.
    """
    if config.auth == "insecure-local" and not is_loopback(config.host):
        message = (
            f"FOVEA_AUTH=insecure-local serves this machine only, but FOVEA_HOST={config.host} is open to others: "
            "set FOVEA_AUTH=keys (make keys with `fovea keys add`), or FOVEA_HOST=127.0.0.1."
        )
        raise CannotListen(message)


def open_listener(host: str, port: int, setting: str = "FOVEA_HTTP_PORT") -> socket.socket:
    """Open a listening socket; `setting` names the port for an error.

    Raises CannotListen: the port is taken, or the address is not this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise CannotListen(_describe_bind_error(host, port, error, setting)) from error
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # connections inherit it: callers that read no answer are dropped
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 120_000)
    return listener


async def serve(config: Settings) -> None:
    """Serve until a signal arrives; requests in flight are finished first, within `shutdown_grace_s`.

    Raises CannotListen: a port is taken, or the address is not this machine's.
    """
    listener = open_listener(config.host, config.http_port)
    metrics = open_listener(config.host, config.metrics_port, "FOVEA_METRICS_PORT") if config.metrics_port else None
    app = build_gateway(config)
    try:
        grpc_server, port = await serve_grpc(app.state.gateway, config.host, config.grpc_port)
    except OSError as error:
        raise CannotListen(_describe_bind_error(config.host, config.grpc_port, error, "FOVEA_GRPC_PORT")) from error
    server, gateway = create_server(app, config), app.state.gateway

    def stop() -> None:
        """Stop the gRPC server as well: one after the other they would take twice the grace."""
        gateway.is_stopping.set()
        gateway.stopping.append(asyncio.create_task(grpc_server.stop(config.shutdown_grace_s)))

    server.on_stop = stop
    http = "http://{}:{}".format(*listener.getsockname()[:2])
    log().info("the gateway listens", http=http, grpc=f"{config.host}:{port}", auth=config.auth)
    try:
        async with _serve_metrics(app.state.gateway, config, metrics):
            await server.serve(sockets=[listener])
    finally:
        await grpc_server.stop(config.shutdown_grace_s)


@contextlib.asynccontextmanager
async def _serve_metrics(gateway: Gateway, config: Settings, listener: socket.socket | None) -> AsyncIterator[None]:
    """Serve the metrics port, where there is one, as long as the gateway serves."""
    if listener is None:
        yield
        return
    server = create_metrics_server(gateway, config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await serving


def _describe_bind_error(host: str, port: int, error: OSError, setting: str) -> str:
    why = str(error.strerror).partition(" (")[0]
    return f"The gateway can't listen on {host}:{port}: {why}. Set {setting} to a free port."


if __name__ == "__main__":
    sys.exit(main())
