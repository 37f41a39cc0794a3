"""A server process under measurement: how it is started, and what CPU time its whole process tree has used."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil

from loadtests.bench.client import request_bytes
from tests.harness.waiting import free_port


@contextmanager
def run_python(
    words: Sequence[str], env: Mapping[str, str], log: int | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process of these words, ended afterwards; `log` is where its output goes, if not to ours."""
    process = subprocess.Popen([sys.executable, *words], env=env, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass
class Contender:
    """One way to serve the small model.

    Attributes:
        name: Its name in the table.
        module: Run as `python -m module PORT words…`; several processes are one contender through `helpers`.
        path, body, headers: The request.
        words: Further arguments.
        env: Further environment.
        helpers: Contenders that must run behind this one; their CPU time counts here too.
    """

    name: str
    module: str
    path: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    helpers: tuple[Contender, ...] = ()
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def request(self) -> bytes:
        """The prepared request."""
        return request_bytes(self.port, self.path, self.body, dict(self.headers))

    def start(self) -> None:
        """Start the process (its helpers first) in a session of its own; its output goes to a log file."""
        for helper in self.helpers:
            helper.start()
        handle, _ = tempfile.mkstemp(prefix=f"bench-{self.name.replace(' ', '-')}-", suffix=".log")
        self.process = subprocess.Popen(
            [sys.executable, "-m", self.module, str(self.port), *self.words],
            env={**os.environ, **self.env},
            stdout=handle,
            stderr=handle,
            start_new_session=True,
        )
        os.close(handle)

    def wait(self, seconds: float = 120) -> None:
        """Wait until the port accepts connections."""
        for helper in self.helpers:
            helper.wait(seconds)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self.process is None or self.process.poll() is not None:
                raise RuntimeError(f"{self.name} died on start")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.2)
        raise RuntimeError(f"{self.name} did not listen within {seconds} s")

    def cpu_seconds(self) -> float:
        """CPU time of the whole tree so far, user and system."""
        if self.process is None:
            return 0.0
        total = sum(helper.cpu_seconds() for helper in self.helpers)
        root = psutil.Process(self.process.pid)
        for member in [root, *root.children(recursive=True)]:
            try:
                times = member.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
        return total

    def stop(self) -> None:
        """End the whole tree."""
        if self.process is not None:
            tree = psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
            for member in tree:
                if member.is_running():
                    member.kill()
        for helper in self.helpers:
            helper.stop()


@contextmanager
def run_fleet(fleet: Sequence[Contender]) -> Iterator[None]:
    """Contenders that run side by side and listen, and are stopped afterwards."""
    try:
        for contender in fleet:
            contender.start()
        for contender in fleet:
            contender.wait()
        yield
    finally:
        for contender in fleet:
            contender.stop()


def make_quiet_environment(folder: str) -> dict[str, str]:
    """Environment of our servers: data in `folder`, and nothing that holds requests back or writes about them."""
    return {
        "FOVEA_DATA_DIR": folder,
        "FOVEA_LOG_LEVEL": "WARNING",
        "FOVEA_RATE_LIMIT_RPM": "100000000",
        "FOVEA_MAX_BATCH_DELAY_MS": "0",
    }
