"""Starts the whole product once for all end-to-end tests: free ports, its own folder, stopped at the end."""

import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import psutil
import pytest

from tests.harness.language_model import share_language_model
from tests.harness.waiting import free_port, is_ready

Found = TypeVar("Found")

START_S = 400
"""A start imports torch six times, which takes a minute on two busy cores."""

WAIT_S = 180
"""Longest wait for what takes seconds: a failure is found late, a busy machine is none."""

LIT = "Console http"
"""Printed after the first requests, when every service of the start has been asked once."""


@dataclass
class Product:
    http: int
    grpc: int
    folder: pathlib.Path
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http}"

    @property
    def log(self) -> str:
        return (self.folder / "up.log").read_text("utf8", "replace")

    def processes(self, *words: str) -> list[psutil.Process]:
        """Live processes of this product whose command line holds all words."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                line = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if all(word in line for word in words):
                found.append(process)
        return found

    def wait_for(self, condition: Callable[[], Found], seconds: float = WAIT_S) -> Found:
        """Wait for a true answer while the product runs; a failure shows its log."""
        until = time.monotonic() + seconds
        while not (found := condition()):
            assert self.process.poll() is None, self.log
            assert time.monotonic() < until, self.log
            time.sleep(0.05)
        return found

    def is_ready(self) -> bool:
        """Whether the first requests were sent and the gateway says that everything is ready."""
        return LIT in self.log and is_ready(self.url)

    def left_behind(self) -> list[str]:
        """Command lines of processes that still know the product's folder."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("FOVEA_DATA_DIR") == str(self.folder / "data"):
                    found.append(" ".join(process.cmdline()))
            except psutil.Error:
                continue
        return found


def start(folder: pathlib.Path, *flags: str, **settings: str) -> Product:
    http, grpc = free_port(), free_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith("FOVEA_")}
    env |= {"FOVEA_HTTP_PORT": str(http), "FOVEA_GRPC_PORT": str(grpc), "FOVEA_DATA_DIR": str(folder / "data")}
    env |= settings
    with (folder / "up.log").open("wb") as log:
        process = subprocess.Popen(
            [pathlib.Path(sys.executable).parent / "fovea", "up", *flags], cwd=folder, env=env, stdout=log,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    return Product(http, grpc, folder, process)


def stop(product: Product) -> None:
    family = [psutil.Process(product.process.pid), *product.processes()]
    product.process.send_signal(signal.SIGINT)
    _, alive = psutil.wait_procs(family, 60)
    for process in alive:
        process.kill()
    product.process.wait(60)  # psutil has collected it, of which Popen must hear


@pytest.fixture(scope="package")
def launch(exported_graphs):
    """Start products that export no graph and convert no language model; what still runs at the end is stopped."""
    started: list[Product] = []

    def begin(folder: pathlib.Path, *flags: str, **settings: str) -> Product:
        share_language_model(folder / "data/cache")
        started.append(start(folder, *flags, FOVEA_GRAPHS_DIR=str(exported_graphs), **settings))
        return started[-1]

    yield begin
    for product in started:
        if product.process.poll() is None:
            stop(product)


@pytest.fixture(scope="package")
def product(launch, tmp_path_factory):
    """The product, ready to serve, its first requests answered; `test_stop.py` stops it."""
    # Its grace is short: jobs that random requests began need not end.
    made = launch(tmp_path_factory.mktemp("product"), FOVEA_SHUTDOWN_GRACE_S="2")
    made.wait_for(made.is_ready, START_S)
    return made
