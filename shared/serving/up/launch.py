"""`fovea up`: starts Redis, the services, which run the jobs, too, and the gateway, until Ctrl-C.

It shows progress, sends one real request to each service, prints the URLs, and at the end stops all in reverse order.
"""

import asyncio
import importlib.util
import secrets
import signal
import socket
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import SecretStr
from rich.console import Console
from rich.markup import escape

from fovea.errors import FoveaError, NotFound, NotReady
from shared import telemetry
from shared.jobs.redis_server import RedisServer, free_port
from shared.local_names import is_loopback
from shared.registry.discovery import SERVICES, services_with_models
from shared.serving.up import forked_replicas
from shared.serving.up.processes import ProcessDied, ProcessGroup
from shared.serving.up.smoke_test import SmokeResult, run_smoke_test
from shared.serving.up.startup_progress import ServiceProgress, StartupProgress
from shared.settings import Settings, settings
from shared.storage.private_files import make_files_private

_OUTPUT_FOLDER = Path("out")
_START_TIMEOUT_S = 900.0
_STAGES = {"placed": "loading", "ready": "[green]ready[/]", "incomplete": "[yellow]started, not whole[/]"}


def up(
    once: Annotated[
        bool, typer.Option("--once", help="Stop after the first requests; the exit code says whether all succeeded.")
    ] = False,
    lm: Annotated[
        str | None,
        typer.Option(help="Language model: a served name, a Hugging Face folder or a GGUF file.", show_default=False),
    ] = None,
    adapters: Annotated[
        Path | None, typer.Option(help="Folder of LoRA adapters, one folder each.", show_default=False)
    ] = None,
) -> None:
    """Start everything on this machine, send one real request to each service, and serve until Ctrl-C."""
    config = settings().model_copy(update=_read_models(lm, adapters))
    telemetry.configure_logs("WARNING", config.log_format)
    ports = {"http_port": config.http_port or free_port(), "grpc_port": config.grpc_port or free_port()}
    raise typer.Exit(asyncio.run(_Product(config.model_copy(update=ports)).run(once=once)))


def _read_models(lm: str | None, adapters: Path | None) -> dict[str, object]:
    """Settings of `--lm` and `--adapters`, with whole paths. Raises NotFound: there is no such file or folder."""
    is_path = lm is not None and (Path(lm).exists() or "/" in lm or lm.endswith(".gguf"))
    model = str(_require_path(Path(lm or ""))) if is_path else lm
    found = {"llm_model": model, "llm_adapters": adapters and _require_path(adapters)}
    return {name: value for name, value in found.items() if value is not None}


def _require_path(path: Path) -> Path:
    if not path.exists():
        raise NotFound(f"There is nothing at {path}.", hint="Give a folder, or a GGUF file.")
    return path.resolve()


def find_port_trouble(config: Settings) -> list[str]:
    """Find what keeps the gateway from its ports, a sentence each; nothing when they are free."""
    if config.auth == "insecure-local" and not is_loopback(config.host):
        return [f"FOVEA_HOST={config.host} is open to others: set FOVEA_AUTH=keys, or FOVEA_HOST=127.0.0.1."]
    if config.http_port == config.grpc_port != 0:
        return [f"FOVEA_HTTP_PORT and FOVEA_GRPC_PORT are both {config.http_port}. Set one to another port."]
    ports = ((config.http_port, "FOVEA_HTTP_PORT"), (config.grpc_port, "FOVEA_GRPC_PORT"))
    return [told for port, variable in ports if (told := _try_port(config.host, port, variable))]


def _try_port(host: str, port: int, variable: str) -> str | None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return f"Port {port} on {host} can't be used ({error.strerror}). Set {variable} to another port."
    return None


class _Product:
    def __init__(self, config: Settings) -> None:
        if config.replica_secret is None:
            config = config.model_copy(update={"replica_secret": SecretStr(secrets.token_hex(32))})
        self._settings = config
        self._console = Console(soft_wrap=True, highlight=False)
        self._started = time.monotonic()
        self._gateway = f"http://{_reachable(config.host)}:{config.http_port}"
        self._services = config.enabled_service_names or services_with_models()
        self._failures = 0
        self._gave_up = False

    async def run(self, *, once: bool) -> int:
        """Start, send first requests, serve and stop; return the exit code."""
        stop_signal: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        hangup = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)  # as under nohup
        for number in (signal.SIGINT, signal.SIGTERM, *hangup):
            asyncio.get_running_loop().add_signal_handler(number, _request_stop, stop_signal, number.name)
        make_files_private(self._settings.data_dir)
        try:
            self._check()
            server = await asyncio.to_thread(RedisServer(self._settings).start)
        except FoveaError as error:
            told = f"{error.detail} {error.hint or ''}".rstrip()
            self._say(f"[red]Can't start.[/] {escape(told)}")
            return 1
        self._say(f"Redis [green]ready[/]: {escape(server.safe_url)}, {server.source.kind}")
        try:
            return await self._supervise(server, stop_signal, once=once)
        finally:
            await asyncio.to_thread(server.stop)
            self._say("Stopped.")

    async def _supervise(self, server: RedisServer, stop_signal: asyncio.Future[str], *, once: bool) -> int:
        """Run the children until the work is done, a child keeps failing, or a signal asks to stop."""
        logs = self._settings.data_dir / "logs"
        children = ProcessGroup(logs, self._environment(server), self._warn, self._settings.shutdown_grace_s + 10)
        tasks = [
            asyncio.create_task(self._keep_redis(server, children)),
            asyncio.create_task(self._work(server, children, once=once)),
        ]
        try:
            watched: list[asyncio.Future[Any]] = [children.failed, stop_signal, *tasks]
            done, _ = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except (ProcessDied, FoveaError) as error:
            self._failures, self._gave_up = self._failures + 1, True
            self._say(f"[red]Giving up.[/] {escape(str(error))}")
        finally:
            self._say(f"Stopping{f' ({stop_signal.result()})' if stop_signal.done() else ''} …")
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await children.stop()
        return 1 if self._failures and (once or self._gave_up) else 0

    async def _work(self, server: RedisServer, children: ProcessGroup, *, once: bool) -> None:
        """Start the children, follow them until they are ready, and send the first requests."""
        shared = {"FOVEA_METRICS_PORT": "0"}  # a machine has one such port, and it is the gateway's
        if self._settings.placement == "ray":
            await children.add("ray", "shared.serving.ray", **shared)
        else:
            for name, services in self._groups().items():
                await children.add(name, forked_replicas.__name__, *services, **shared)
        await children.add("gateway", "services.gateway")
        if self._settings.auth == "keys" and self._settings.up_api_key is None:
            self._warn("FOVEA_AUTH=keys and FOVEA_UP_API_KEY is not set: no first requests are sent.")
        readiness = StartupProgress(self._services, server.url, self._gateway, self._settings.replica_credentials)
        unanswered = set(self._services)
        try:
            async with asyncio.timeout(_START_TIMEOUT_S), asyncio.TaskGroup() as asking:
                async for news in readiness.news():
                    self._show_progress(news)
                    if news.stage != "placed":
                        asking.create_task(self._ask_first(news.service, unanswered))
        except TimeoutError:
            raise NotReady(f"Not ready after {_START_TIMEOUT_S:g} s.", hint="See the logs.") from None
        for service in sorted(unanswered):  # one that asks another service answers when that one is there
            await self._ask_first(service, unanswered, is_last=True)
        page, grpc = self._gateway, f"{_reachable(self._settings.host)}:{self._settings.grpc_port}"
        self._say(f"Console {page}/  ·  API {page}/docs  ·  gRPC {grpc}")
        if not once:
            await asyncio.Event().wait()

    def _groups(self) -> dict[str, list[str]]:
        """Services by the process that they are forked from."""
        groups: dict[str, list[str]] = {}
        for service in self._services:
            name = "language services" if service in forked_replicas.TORCH_SERVICES else "services"
            groups.setdefault(name, []).append(service)
        return groups

    async def _ask_first(self, service: str, unanswered: set[str], *, is_last: bool = False) -> None:
        """Send a service its first request; a failure is shown, and counts, only where nothing else is waited for."""
        key = self._settings.up_api_key
        if self._settings.auth == "keys" and key is None:
            return
        secret = key.get_secret_value() if key else None
        async for result in run_smoke_test(self._gateway, _OUTPUT_FOLDER, secret, {service}):
            if result.is_ok or is_last:
                unanswered.discard(service)
                self._show(result)

    async def _keep_redis(self, server: RedisServer, children: ProcessGroup) -> None:
        """Start our Redis again, with its data and port, whenever it dies."""
        while server.process is not None:
            children.watch(server.process.pid)
            pid, code = server.process.pid, await asyncio.to_thread(server.process.wait)
            children.watch(pid, gone=True)
            self._warn(f"Redis ended (code {code}); starting it again.")
            await asyncio.to_thread(server.start)
        await asyncio.Event().wait()

    def _check(self) -> None:
        config = self._settings
        if not self._services:
            raise NotReady("No service has a model.", hint="`fovea doctor` says which rooms were left out, and why.")
        if unknown := [name for name in self._services if name not in SERVICES]:
            hint = f"FOVEA_ENABLED_SERVICES may name {', '.join(SERVICES)}."
            raise NotFound(f"There is no service {unknown[0]!r}.", hint=hint)
        if config.placement == "ray" and importlib.util.find_spec("ray") is None:
            hint = "Try: pip install 'fovea-platform[cluster]'."
            raise NotReady("FOVEA_PLACEMENT is ray, which is not installed.", hint=hint)
        for trouble in find_port_trouble(config):
            raise NotReady(trouble)

    def _environment(self, server: RedisServer) -> dict[str, str]:
        config = self._settings
        variables = {
            "FOVEA_REDIS_URL": server.url,
            "FOVEA_ENABLED_SERVICES": ",".join(self._services),
            "FOVEA_DATA_DIR": str(config.data_dir.resolve()),
            "FOVEA_HTTP_PORT": str(config.http_port),
            "FOVEA_GRPC_PORT": str(config.grpc_port),
            "FOVEA_REPLICA_SECRET": ",".join(config.replica_secrets),
            "FOVEA_LLM_MODEL": config.llm_model,
            "FOVEA_JOBS_IN_REPLICA": "1",
            "PYTHONUNBUFFERED": "1",
            "MALLOC_ARENA_MAX": "2",  # each more is memory that one thread has freed and no other takes
            # Services share the cores, so threads that wait must not spin for long; but the gaps inside one decode step
            # are shorter than falling asleep and waking up, which nearly doubles its time.
            "GOMP_SPINCOUNT": "10000",
        }
        if config.llm_adapters is not None:
            variables["FOVEA_LLM_ADAPTERS"] = str(config.llm_adapters.resolve())
        if "preload" not in config.model_fields_set:
            variables["FOVEA_PRELOAD"] = "default"
        if "judge_base_url" not in config.model_fields_set:
            variables["FOVEA_JUDGE_BASE_URL"] = self._gateway
        return variables

    def _show_progress(self, news: ServiceProgress) -> None:
        self._say(f"{news.service} {_STAGES[news.stage]}: {', '.join(news.models) or 'no models'}")
        for model, reason in news.reasons.items():
            self._failures += 1
            self._say(f"  [red]{escape(model)}[/]: {escape(reason)}")

    def _show(self, result: SmokeResult) -> None:
        self._failures += not result.is_ok
        mark = "[green]✓[/]" if result.is_ok else "[red]✗[/]"
        files = f" → {', '.join(map(str, result.files))}" if result.files else ""
        self._say(f"{mark} {result.model}  {result.seconds * 1000:.0f} ms  {escape(result.summary)}{files}")

    def _say(self, line: str) -> None:
        self._console.print(f"[dim]{time.monotonic() - self._started:6.1f} s[/]  {line}")

    def _warn(self, line: str) -> None:
        self._say(f"[yellow]{escape(line)}[/]")


def _request_stop(stop_signal: asyncio.Future[str], name: str) -> None:
    if not stop_signal.done():
        stop_signal.set_result(name)


def _reachable(host: str) -> str:
    """The address at which a server that listens on `host` is reached from here."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # compared, not bound
    return f"[{name}]" if ":" in name else name
