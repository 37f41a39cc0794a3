"""Processes of a test, each with a log of its own, ended together."""

import pathlib
import subprocess
from collections.abc import Mapping, Sequence


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
