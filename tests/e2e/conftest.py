"""Starts the whole product once for all end-to-end tests: free ports, its own folder, stopped at the end."""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx2
import psutil
import pytest

ROOT = pathlib.Path(__file__).parents[2]
START_S = 400
"""A first start dequantises the language model and exports graphs; on two busy cores that takes its time."""


LIT = "Console http"
"""Printed after the first light, when every service of the start has been asked once."""


@dataclass
class Product:
    """A running Fovea and where it listens."""

    http: int
    grpc: int
    folder: pathlib.Path
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        """Base URL of the gateway."""
        return f"http://127.0.0.1:{self.http}"

    @property
    def log(self) -> str:
        """What `fovea up` has printed so far."""
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


def left_behind(folder: pathlib.Path) -> list[str]:
    """Command lines of processes that still know the product's folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if f"FOVEA_DATA_DIR={folder / 'data'}" in " ".join(f"{k}={v}" for k, v in process.environ().items()):
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(folder: pathlib.Path, *flags: str, **settings: str) -> Product:
    """Start `fovea up` in a folder of its own."""
    http, grpc = free_port(), free_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith("FOVEA_")}
    env |= {
        "FOVEA_HTTP_PORT": str(http),
        "FOVEA_GRPC_PORT": str(grpc),
        "FOVEA_DATA_DIR": str(folder / "data"),
        **settings,
    }
    with (folder / "up.log").open("wb") as log:
        process = subprocess.Popen(
            [pathlib.Path(sys.executable).parent / "fovea", "up", *flags],
            cwd=folder,
            env=env,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Product(http, grpc, folder, process)


def wait_ready(product: Product, seconds: float = START_S) -> None:
    """Wait until the first light is done and the gateway says that everything is ready.

    Raises:
        AssertionError: It ended, or was not ready in time; the message holds its log.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert product.process.poll() is None, product.log
        try:
            if LIT in product.log and httpx2.get(f"{product.url}/readyz", timeout=5).status_code == 200:
                return
        except httpx2.HTTPError:
            pass
        time.sleep(0.5)
    raise AssertionError(product.log)


def stop(product: Product) -> list[psutil.Process]:
    """Stop as Ctrl-C does; return the processes that are left behind."""
    family = psutil.Process(product.process.pid).children(recursive=True)
    product.process.send_signal(signal.SIGINT)
    try:
        product.process.wait(60)
    finally:
        left = [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
        for process in [*left, *([psutil.Process(product.process.pid)] if product.process.poll() is None else [])]:
            process.kill()
    return left


@pytest.fixture(scope="package")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """The product, ready to serve, its first light done; stopped before other tests follow."""
    made = start(tmp_path_factory.mktemp("product"))
    try:
        wait_ready(made)
        yield made
    finally:
        if made.process.poll() is None:
            stop(made)
