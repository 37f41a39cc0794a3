"""`python -m shared.serving SERVICE`: one replica in a process of its own, until SIGTERM; the image runs it."""

import asyncio
import signal
from typing import Annotated

import typer
import uvloop

from shared import telemetry
from shared.registry.discovery import SERVICES
from shared.serving.heartbeat import tell_failed_start
from shared.serving.replica import ReplicaServer, load_app
from shared.settings import Settings, settings
from shared.storage.private_files import make_files_private


def main(
    service: Annotated[str, typer.Argument(help=f"One of {', '.join(SERVICES)}.")],
    http_port: Annotated[int, typer.Option(help="REST; 0 takes a free port.")] = 0,
    grpc_port: Annotated[int, typer.Option(help="Open Inference gRPC; 0 takes a free port.")] = 0,
) -> None:
    """Serve one service until SIGTERM or Ctrl-C, then finish what has begun."""
    if service not in SERVICES:
        raise typer.BadParameter(f"{service!r} is not a service; choose one of {', '.join(SERVICES)}.")
    try:
        run_replica(service, http_port, grpc_port)
    except OSError as error:
        typer.echo(f"Can't start: {error}. Is a port in use? Try others: --http-port, --grpc-port.", err=True)
        raise typer.Exit(1) from error


def run_replica(service: str, http_port: int = 0, grpc_port: int = 0) -> None:
    """Serve one service in this process until SIGTERM or SIGINT. Raises OSError: a port is in use."""
    config = settings()
    telemetry.configure_logs(config.log_level, config.log_format)
    telemetry.configure_tracing(config.traces_endpoint, f"fovea-{service}")
    make_files_private(config.data_dir)
    try:
        uvloop.run(_serve(service, config, http_port, grpc_port))
    finally:
        telemetry.shut_down_tracing()


async def _serve(service: str, config: Settings, http_port: int, grpc_port: int) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    with tell_failed_start(service, config):
        app = load_app(service)
        replica = ReplicaServer(app, config, http_port=http_port, grpc_port=grpc_port, owns_process=True)
        await replica.start()
    telemetry.log().info("serving", service=service, http=replica.http, grpc=replica.grpc)
    await stopping.wait()
    telemetry.log().info("stopping", service=service)
    await replica.stop()


if __name__ == "__main__":
    typer.run(main)
