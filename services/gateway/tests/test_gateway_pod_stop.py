"""A gateway's pod is stopped: it serves on while load balancers still send, then ends no stream before its time."""

import asyncio
import contextlib
import signal

import httpx2
import pytest

from services.gateway.tests.test_gateway_process import listens_at, start

DOCUMENT = {"paths": {path: {"post": {}} for path in ("/v1/stream", "/v1/echo")}}


async def wait_ready(client: httpx2.AsyncClient) -> None:
    for _ in range(300):
        with contextlib.suppress(httpx2.TransportError):
            if (await client.get("/readyz")).status_code == 200:
                return
        await asyncio.sleep(0.1)
    raise AssertionError("the gateway did not become ready")


@pytest.mark.parametrize(("grace_s", "is_whole"), [("20", True), ("1", False)])
async def test_a_stream_ends_by_itself_within_the_grace_and_is_cut_after_it(toy, tmp_path, grace_s, is_whole):
    upstream = await toy(name="r", chunks=40, gap_s=0.1, documents={"openapi": DOCUMENT})
    process = start(tmp_path, FOVEA_STATIC_UPSTREAMS=f"svc={upstream.url}", FOVEA_SHUTDOWN_GRACE_S=grace_s)
    assert process.stderr is not None
    with process, process.stderr:
        url = await asyncio.to_thread(listens_at, process.stderr)
        async with httpx2.AsyncClient(base_url=url, timeout=30) as client:
            await wait_ready(client)
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
