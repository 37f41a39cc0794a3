"""`fovea up` keeps what it started alive, says what died, and leaves nothing behind, however it ends."""

import os
import signal
import socket
import subprocess
import sys
import time

import httpx2
import psutil
import pytest

from shared.serving.up import reaper
from shared.settings import environment

pytestmark = [pytest.mark.slow, pytest.mark.e2e]

UP = "import typer; from shared.serving.up.launch import up; typer.run(up)"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Product:
    """`fovea up` with one service, in a folder of its own."""

    def __init__(self, folder):
        self.port = free_port()
        self.log = folder / "up.log"
        env = environment(
            FOVEA_ENABLED_SERVICES="detection",
            FOVEA_DATA_DIR=str(folder / "data"),
            FOVEA_HTTP_PORT=str(self.port),
            FOVEA_GRPC_PORT="0",
            FOVEA_SHUTDOWN_GRACE_S="2",
        )
        env.pop("FOVEA_REDIS_URL", None)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", UP], cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def said(self):
        """What it has printed."""
        return self.log.read_text("utf-8")

    def wait_for(self, condition, seconds=60):
        """Wait until the condition holds."""
        end = time.monotonic() + seconds
        while not (answer := condition()):
            assert time.monotonic() < end, self.said
            assert self.process.poll() is None, self.said
            time.sleep(0.1)
        return answer

    def children(self):
        """Its child processes by what their command line holds."""
        found = {}
        for child in psutil.Process(self.process.pid).children():
            line = " ".join(child.cmdline())
            for name in ("serving.ray", "serving.worker", "services.gateway", "serving.up.reaper", "server 127.0.0.1"):
                if name in line:
                    found[name] = child.pid
        return found

    def alive(self):
        """Whether the gateway answers."""
        try:
            return httpx2.get(f"http://127.0.0.1:{self.port}/livez", timeout=2).status_code == 200
        except httpx2.HTTPError:
            return False


@pytest.fixture
def product(tmp_path):
    made = Product(tmp_path)
    made.wait_for(lambda: "Console" in made.said, 120)
    sessions = [*made.children().values(), made.process.pid]
    yield made
    reaper.end_sessions([made.process.pid], 20)
    made.process.wait()
    reaper.end_sessions(sessions, 0)


def test_what_dies_is_started_again_and_said_and_ctrl_c_ends_all(product):
    before = product.children()
    assert len(before) == 5
    for name, said in (
        ("serving.worker", "worker detection ended (signal SIGKILL)"),
        ("services.gateway", "gateway ended (signal SIGKILL)"),
        ("server 127.0.0.1", "Redis ended (code -9)"),
    ):
        os.kill(before[name], signal.SIGKILL)
        product.wait_for(lambda said=said: said in product.said)
        product.wait_for(lambda name=name: product.children().get(name) not in {None, before[name]})
    product.wait_for(product.alive)
    sessions = product.children().values()
    product.process.send_signal(signal.SIGINT)
    assert product.process.wait(40) == 0, product.said
    assert "Stopping (SIGINT)" in product.said
    assert product.said.rstrip().endswith("Stopped.")
    assert [pid for session in sessions for pid in reaper.session_members(session)] == []
    assert "Traceback" not in product.said


def test_killed_supervisor_leaves_no_process(product):
    sessions = list(product.children().values())
    assert all(reaper.session_members(session) for session in sessions)
    product.process.kill()
    product.process.wait()
    end = time.monotonic() + 40
    while any(reaper.session_members(session) for session in sessions) and time.monotonic() < end:
        time.sleep(0.2)
    assert [pid for session in sessions for pid in reaper.session_members(session)] == []
