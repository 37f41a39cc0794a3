"""Replicas die; requests do not. Connections are really cut and processes really killed."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.harness.scripted import scripted
from tests.harness.waiting import free_port


@contextlib.asynccontextmanager
async def cutting(after: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """An upstream that reads a request, answers `after` and cuts the connection; and what it has read."""
    heard: list[bytes] = []

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(2**16))
        writer.write(after)
        await writer.drain()
        writer.transport.abort() if not after else writer.close()

    async with scripted(one) as url:
        yield url, heard


@pytest.fixture
async def pair(gateway, toy):
    """Starts a gateway before a replica that cuts after `said` and is preferred, and a good one."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(said: bytes = b"", **last: Any) -> tuple[Any, list[bytes], Any]:
            upstream, scene = await toy(name="good"), await gateway()
            url, heard = await stack.enter_async_context(cutting(said))
            bad = scene.announce(url, name="bad")
            bad.record = bad.record.model_copy(update=last)
            scene.announce(upstream.url, name="good").in_flight = 1
            return scene, heard, upstream

        yield start


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this"])
async def test_a_request_whose_replica_dies_is_answered_by_another(pair, said):
    scene, heard, _ = await pair(said)
    answer = await scene.client.post("/v1/echo", content=b"picture")
    assert (answer.status_code, answer.content, answer.headers["x-replica"]) == (200, b"picture", "good")
    assert len(heard) == 1


@pytest.mark.parametrize(
    ("path", "last", "status", "told"),
    [
        ("/v1/sessions", {}, 503, "not_ready"),
        *(
            ("/v1/echo", last, 413, "This request took more memory than a replica of svc has.")
            for last in ({"out_of_memory": True}, {"memory": 0.95})
        ),
    ],
)
async def test_what_leaves_something_behind_or_took_too_much_memory_is_not_sent_twice(pair, path, last, status, told):
    scene, heard, upstream = await pair(**last)
    answer = await scene.client.post(path, content=b"{}")
    assert (answer.status_code, len(heard), upstream.seen, told in answer.text) == (status, 1, [], True)
    assert answer.headers.get("retry-after") == {503: "1"}.get(status)


async def test_a_refused_connection_is_no_reason_not_to_send_it_elsewhere(gateway, toy):
    upstream = await toy(name="good")
    scene = await gateway()
    dead = scene.announce(f"http://127.0.0.1:{free_port()}", name="dead")
    scene.announce(upstream.url, name="good").in_flight = 1
    assert (await scene.client.post("/v1/sessions", content=b"{}")).status_code == 200
    assert scene.registry.pick("svc").id == "good"
    assert dead.in_flight == 0


async def test_a_request_that_kills_every_replica_is_given_up_and_others_there_may_send_again(gateway):
    scene = await gateway()
    async with cutting(b"") as (url, heard):
        scene.announce(url, name="only")
        assert (await scene.client.post("/v1/echo", content=b"poison")).status_code == 503
        assert len(heard) == 4
        only = scene.announce(url, name="only", out_of_memory=True)
        only.in_flight = 1
        answer = await scene.client.post("/v1/echo", content=b"picture")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


async def test_a_replica_that_is_not_ready_sends_us_to_the_next_and_is_believed_when_alone(served, toy):
    scene = await served(fields={"name": "draining", "status": 503})
    answer = await scene.client.post("/v1/echo", content=b"why")
    assert (answer.status_code, answer.content, len(scene.upstream.seen)) == (503, b"why", 1)
    scene.announce((await toy(name="good")).url, name="good").in_flight = 1
    assert (await scene.client.post("/v1/echo")).headers["x-replica"] == "good"


async def test_a_request_waits_for_the_next_replica_of_a_service_that_lost_its_last(gateway, toy):
    upstream = await toy(name="new")
    scene = await gateway()
    scene.announce(f"http://127.0.0.1:{free_port()}", name="dead")
    asking = asyncio.create_task(scene.client.post("/v1/echo", content=b"picture"))
    await asyncio.sleep(0.4)
    assert not asking.done()
    scene.announce(upstream.url, name="new")
    assert (await asking).headers["x-replica"] == "new"


async def test_nobody_waits_longer_than_the_deadline_or_for_a_service_that_never_was_ready(gateway):
    scene = await gateway()
    scene.announce("http://127.0.0.1:1", name="r", ready=False)
    answer = await scene.client.post("/v1/echo", timeout=2)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert "loading" in answer.json()["detail"]
    scene.announce(f"http://127.0.0.1:{free_port()}", name="r")
    answer = await scene.client.post("/v1/echo", headers={"x-fovea-deadline-ms": "300"})
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
