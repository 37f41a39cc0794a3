"""Processes of a test, each with a log of its own, ended together."""

import contextlib
import pathlib
import subprocess
from collections.abc import Mapping, Sequence

from shared.jobs.redis_server import RedisServer
from shared.settings import Settings
from tests.harness.waiting import wait_until


@contextlib.contextmanager
def run_platform(folders, make):
    """Start a platform, `make` of a folder and a Redis, and give it once it `is_ready`."""
    with RedisServer(Settings(data_dir=folders.mktemp("redis"), redis_url=None)) as server:
        made = make(folders.mktemp("platform"), server.url)
        try:
            wait_until(made.is_ready, 120, "the gateways see their services")
            yield made
        finally:
            made.processes.stop()


class Processes:
    """Starts processes that write into files of one folder."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        with (self._folder / f"{len(self._started)}.log").open("wb") as log:
            self._started.append(subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT))

    def stop(self) -> None:
        for process in self._started:
            process.terminate()
        for process in self._started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
