"""`fovea up`: starts Redis, Ray with the services, a worker per service and the gateway, and keeps them until Ctrl-C.

It shows readiness as it comes, sends one real request to each service, prints the URLs, and at the end stops everything
in reverse order. Knows processes and readiness; knows no models.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from shared import telemetry
from shared.errors import FoveaError, NotReady
from shared.jobs.redis_server import RedisServer
from shared.registry.discovery import services_with_models
from shared.serving.up.processes import ProcessDied, ProcessGroup
from shared.serving.up.smoke_test import SmokeResult, run_smoke_test
from shared.serving.up.startup_progress import ServiceProgress, StartupProgress
from shared.settings import Settings, settings

__all__ = ["port_in_use", "up"]

_OUT = Path("out")
_LONGEST_START_S = 900.0
_STAGES = {"placed": "loading", "ready": "[green]ready[/]", "incomplete": "[yellow]started, not whole[/]"}


def up(
    once: Annotated[bool, typer.Option("--once", help="Stop after first light; the exit code tells.")] = False,
) -> None:
    """Start everything on this machine, send one real request to each service, and serve until Ctrl-C."""
    chosen = settings()
    telemetry.configure_logs("WARNING", chosen.log_format)
    ports = {"http_port": chosen.http_port or _free_port(), "grpc_port": chosen.grpc_port or _free_port()}
    raise typer.Exit(asyncio.run(_Product(chosen.model_copy(update=ports)).run(once=once)))


def port_in_use(host: str, port: int, variable: str) -> str | None:
    """What to say when a port is taken; None when it is free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return f"Port {port} on {host} can't be used ({error.strerror}). Set {variable} to another port."
    return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class _Product:
    """The whole product, as processes of this machine."""

    def __init__(self, chosen: Settings) -> None:
        self._settings = chosen
        self._console = Console(soft_wrap=True, highlight=False)
        self._begun = time.monotonic()
        self._gateway = f"http://{_reachable(chosen.host)}:{chosen.http_port}"
        self._services = chosen.enabled_service_names or services_with_models()
        self._failures = 0
        self._gave_up = False

    async def run(self, *, once: bool) -> int:
        """Start, light, serve and stop; returns the exit code."""
        over: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, _asked, over, number.name)
        try:
            self._check()
            server = RedisServer(self._settings)
            await asyncio.to_thread(server.start)
        except FoveaError as error:
            self._say(f"[red]Can't start.[/] {escape(_sentence(error))}")
            return 1
        self._say(f"Redis [green]ready[/]: {escape(server.safe_url)}, {server.source.kind}")
        try:
            return await self._with(server, over, once=once)
        finally:
            await asyncio.to_thread(server.stop)
            self._say("Stopped.")

    async def _with(self, server: RedisServer, over: asyncio.Future[str], *, once: bool) -> int:
        """Run the children on a Redis until the work is done, something is beyond repair, or somebody asks to stop."""
        logs = self._settings.data_dir / "logs"
        children = ProcessGroup(logs, self._environment(server), self._warn, self._settings.shutdown_grace_s + 10)
        tasks = [
            asyncio.create_task(self._keep(server, children)),
            asyncio.create_task(self._work(server, children, once=once)),
        ]
        try:
            watched: list[asyncio.Future[Any]] = [children.failed, over, *tasks]
            done, _ = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except (ProcessDied, FoveaError) as error:
            self._failures += 1
            self._gave_up = True
            self._say(f"[red]Giving up.[/] {escape(str(error))}")
        finally:
            self._say(f"Stopping{f' ({over.result()})' if over.done() else ''} …")
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await children.stop()
        return 1 if self._failures and (once or self._gave_up) else 0

    async def _work(self, server: RedisServer, children: ProcessGroup, *, once: bool) -> None:
        """Start the children, follow them until they are ready, and send the first requests."""
        await children.add("ray", "shared.serving.ray")
        await children.add("gateway", "services.gateway")
        readiness = StartupProgress(self._services, server.url, self._gateway)
        try:
            async with asyncio.timeout(_LONGEST_START_S):
                async for news in readiness.news():
                    self._tell(news)
                    if news.stage == "placed":
                        await children.add(f"worker {news.service}", "shared.serving.worker", news.service)
        except TimeoutError:
            raise NotReady(f"Not ready after {_LONGEST_START_S:g} s.", hint="See the logs.") from None
        await self._light_up()
        self._urls()
        if not once:
            await asyncio.Event().wait()

    async def _light_up(self) -> None:
        """One request to each service; where keys are demanded and none is set, say what is left out."""
        key = self._settings.up_api_key
        if self._settings.auth == "keys" and key is None:
            self._warn("Keys are demanded and FOVEA_UP_API_KEY is not set: no first requests are sent.")
            return
        async for light in run_smoke_test(self._gateway, _OUT, key.get_secret_value() if key else None):
            self._show(light)

    async def _keep(self, server: RedisServer, children: ProcessGroup) -> None:
        """Start our Redis again, with its data and port, whenever it dies."""
        while server.process is not None:
            children.watch(server.process.pid)
            pid, code = server.process.pid, await asyncio.to_thread(server.process.wait)
            children.watch(pid, gone=True)
            self._warn(f"Redis ended (code {code}); starting it again.")
            await asyncio.to_thread(server.start)
        await asyncio.Event().wait()

    def _check(self) -> None:
        chosen = self._settings
        if not self._services:
            raise NotReady("No service has a model.", hint="`fovea doctor` says which rooms were left out, and why.")
        for port, variable in ((chosen.http_port, "FOVEA_HTTP_PORT"), (chosen.grpc_port, "FOVEA_GRPC_PORT")):
            if taken := port_in_use(chosen.host, port, variable):
                raise NotReady(taken)

    def _environment(self, server: RedisServer) -> dict[str, str]:
        chosen = self._settings
        told = {
            "FOVEA_REDIS_URL": server.url,
            "FOVEA_ENABLED_SERVICES": ",".join(self._services),
            "FOVEA_DATA_DIR": str(chosen.data_dir.resolve()),
            "FOVEA_HTTP_PORT": str(chosen.http_port),
            "FOVEA_GRPC_PORT": str(chosen.grpc_port),
            "PYTHONUNBUFFERED": "1",
            # Services share the cores, so threads that wait must not spin for long; but the gaps inside one decode step
            # are shorter than falling asleep and waking up, which nearly doubles its time.
            "GOMP_SPINCOUNT": "10000",
        }
        if "judge_base_url" not in chosen.model_fields_set:
            told["FOVEA_JUDGE_BASE_URL"] = self._gateway
        return told

    def _tell(self, news: ServiceProgress) -> None:
        self._say(f"{news.service} {_STAGES[news.stage]}: {', '.join(news.models) or 'no models'}")
        for model, reason in news.reasons.items():
            self._failures += 1
            self._say(f"  [red]{escape(model)}[/]: {escape(reason)}")

    def _show(self, light: SmokeResult) -> None:
        self._failures += not light.good
        mark = "[green]✓[/]" if light.good else "[red]✗[/]"
        files = f" → {', '.join(map(str, light.files))}" if light.files else ""
        self._say(f"{mark} {light.model}  {light.seconds * 1000:.0f} ms  {escape(light.told)}{files}")

    def _urls(self) -> None:
        chosen, page = self._settings, self._gateway
        self._say(f"Console {page}/  ·  API {page}/docs  ·  gRPC {_reachable(chosen.host)}:{chosen.grpc_port}")

    def _say(self, line: str) -> None:
        self._console.print(f"[dim]{time.monotonic() - self._begun:6.1f} s[/]  {line}")

    def _warn(self, line: str) -> None:
        self._say(f"[yellow]{escape(line)}[/]")


def _asked(over: asyncio.Future[str], how: str) -> None:
    if not over.done():
        over.set_result(how)


def _reachable(host: str) -> str:
    """The address at which a server that listens on `host` is reached from here."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104  # compared, not bound


def _sentence(error: FoveaError) -> str:
    return f"{error.detail} {error.hint or ''}".rstrip()
