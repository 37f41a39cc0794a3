"""`python -m services.gateway` as a process: it starts, refuses wrong settings in one line, and stops when told."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import IO

import grpc
import httpx2
import pytest

from tests.harness.waiting import free_port, wait_until


def start(folder: Path, *program: str, **changed: str) -> subprocess.Popen[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FOVEA_")}
    env = {**kept, "FOVEA_DATA_DIR": str(folder), "FOVEA_HTTP_PORT": "0", "FOVEA_GRPC_PORT": "0", **changed}
    words = program or ("-m", "services.gateway")
    return subprocess.Popen([sys.executable, *words], env=env, text=True, stderr=subprocess.PIPE)


def listens_at(stderr: IO[str]) -> str:
    for line in stderr:
        if found := re.search(r"http=(http://\S+)", line):
            return found[1]
    raise AssertionError("the gateway never said where it listens")


@pytest.mark.parametrize("setting", ["FOVEA_HTTP_PORT", "FOVEA_GRPC_PORT", "FOVEA_HOST"])
def test_a_port_in_use_and_an_open_address_without_keys_are_one_clear_line(tmp_path, setting):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = start(tmp_path, **{setting: "0.0.0.0" if setting == "FOVEA_HOST" else str(port)})
        _, told = process.communicate(timeout=20)
    assert process.returncode == 2
    in_use = f"The gateway can't listen on 127.0.0.1:{port}: Address already in use. Set {setting} to a free port."
    assert ("FOVEA_AUTH=keys" if setting == "FOVEA_HOST" else in_use) in told.strip().splitlines()[-1]
    assert "Traceback" not in told
    assert len(told.strip().splitlines()) == 1 or setting != "FOVEA_HOST"


def test_metrics_have_a_port_of_their_own_that_wants_no_key(tmp_path):
    port = free_port()
    process = start(tmp_path, FOVEA_AUTH="keys", FOVEA_METRICS_PORT=str(port))
    with process, process.stderr:
        url = listens_at(process.stderr)
        for _ in range(50):
            with contextlib.suppress(httpx2.TransportError):
                if (answer := httpx2.get(f"http://127.0.0.1:{port}/metrics")).status_code == 200:
                    break
        assert "python_info" in answer.text
        assert httpx2.get(f"{url}/metrics").status_code == 401
        assert httpx2.get(f"http://127.0.0.1:{port}/v1/models").status_code == 404
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
        assert process.wait(10) in {0, -signal.SIGTERM}


async def test_both_fronts_stop_taking_calls_at_once(toy, tmp_path):
    upstream = await toy(chunks=60, gap_s=0.1, documents={"openapi": DOCUMENT})
    at = free_port()
    fixed = {"FOVEA_STATIC_UPSTREAMS": f"svc={upstream.url}", "FOVEA_GRPC_PORT": str(at)}
    process = start(tmp_path, FOVEA_SHUTDOWN_GRACE_S="20", **fixed)
    with process, process.stderr:
        url = await asyncio.to_thread(listens_at, process.stderr)
        await asyncio.to_thread(wait_until, lambda: httpx2.get(f"{url}/readyz").status_code == 200, 30)
        async with (
            grpc.aio.insecure_channel(f"127.0.0.1:{at}") as channel,
            httpx2.AsyncClient(timeout=30) as client,
            client.stream("POST", f"{url}/v1/stream", json={}) as answer,
        ):
            live, lines = channel.unary_unary("/inference.GRPCInferenceService/ServerLive"), answer.aiter_lines()
            await anext(lines)
            await live(b"")
            process.send_signal(signal.SIGTERM)
            async for line in lines:
                if line == "data: 20":
                    with pytest.raises(grpc.aio.AioRpcError):
                        await live(b"", timeout=5)
            assert line in {"", "data: 59"}
        await asyncio.to_thread(process.stderr.read)
        assert await asyncio.to_thread(process.wait, 20) in {0, -signal.SIGTERM}


DOCUMENT = {"paths": {path: {"post": {}} for path in ("/v1/stream", "/v1/echo")}}


@pytest.mark.parametrize(("grace_s", "is_whole"), [("20", True), ("1", False)])
async def test_a_stream_ends_by_itself_within_the_grace_and_is_cut_after_it(toy, tmp_path, grace_s, is_whole):
    upstream = await toy(name="r", chunks=40, gap_s=0.1, documents={"openapi": DOCUMENT})
    process = start(tmp_path, FOVEA_STATIC_UPSTREAMS=f"svc={upstream.url}", FOVEA_SHUTDOWN_GRACE_S=grace_s)
    with process, process.stderr:
        url = await asyncio.to_thread(listens_at, process.stderr)
        async with httpx2.AsyncClient(base_url=url, timeout=30) as client:
            await asyncio.to_thread(wait_until, lambda: httpx2.get(f"{url}/readyz").status_code == 200, 30)
            events = 0
            with contextlib.suppress(httpx2.RemoteProtocolError):
                async with client.stream("POST", "/v1/stream", json={}) as answer:
                    async for line in answer.aiter_lines():
                        events += line.startswith("data: ") and line.removeprefix("data: ").isdecimal()
                        if line == "data: 0":
                            await asyncio.sleep(0.5)  # the chart's `preStop`
                            assert (await client.post("/v1/echo", content=b"x")).status_code == 200
                            process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        rest = await asyncio.to_thread(process.stderr.read)
        assert (events == 40) is is_whole, rest
        assert not is_whole or "Traceback" not in rest
        assert await asyncio.to_thread(process.wait, 20) in {0, -signal.SIGTERM}
