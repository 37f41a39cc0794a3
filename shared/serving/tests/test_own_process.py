"""`python -m shared.serving SERVICE`: a replica in a process of its own, as the image runs it."""

import contextlib
import signal
import socket
import subprocess
import sys

import httpx2

from shared.settings import environment
from tests.harness.waiting import free_port, wait_until


def run(*arguments):
    env = environment(FOVEA_LOG_FORMAT="json", FOVEA_SHUTDOWN_GRACE_S="1")
    command = [sys.executable, "-m", "shared.serving", *arguments]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_it_serves_on_the_stated_ports_until_sigterm():
    http, grpc = free_port(), free_port()
    process = run("relevance-judge", "--http-port", str(http), "--grpc-port", str(grpc))

    def ask():
        with contextlib.suppress(httpx2.ConnectError):
            return httpx2.get(f"http://127.0.0.1:{http}/livez").json()

    assert wait_until(ask, 120) == {"status": "alive"}
    with socket.create_connection(("127.0.0.1", grpc), 5):
        pass
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert '"serving"' in said
    assert "Traceback" not in said


def test_unknown_service_and_port_in_use_are_one_clear_line():
    process = run("nope")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "medical-seg" in said
    assert "Traceback" not in said
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = run("relevance-judge", "--http-port", str(taken.getsockname()[1]))
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "--http-port" in said
    assert "Traceback" not in said
