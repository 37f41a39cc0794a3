"""Replicas die, hang or are still to be started; requests are not lost. Connections are really cut."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
import redis
from starlette.responses import JSONResponse
from starlette.routing import Route

from fovea.api.replica import WANTED_S, ReplicaRecord, replicas_key, wanted_key
from services.gateway.policy.memory_budget import MemoryBudget
from services.gateway.routing import replica_registry
from services.gateway.tests.grpc_front import INFER, call
from shared.jobs.redis_client import cancel_tasks
from tests.harness.scripted import scripted
from tests.harness.waiting import free_port, until


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
    assert (answer.status_code, answer.content, answer.headers["x-replica"], len(heard)) == (200, b"picture", "good", 1)


@pytest.mark.parametrize(("path", "last", "status", "told"), [
    ("/v1/sessions", {}, 500, "may have had its effect"),
    *(("/v1/echo", last, 413, "This request took more memory than a replica of svc has.")
      for last in ({"out_of_memory": True}, {"memory": 0.95})),
])  # fmt: skip
async def test_what_leaves_something_behind_or_took_too_much_memory_is_not_sent_twice(pair, path, last, status, told):
    scene, heard, upstream = await pair(**last)
    answer = await scene.client.post(path, content=b"{}")
    assert (answer.status_code, len(heard), upstream.seen, told in answer.text) == (status, 1, [], True)
    assert "retry-after" not in answer.headers


async def test_a_refused_connection_or_a_replica_that_is_not_or_says_not_ready_sends_us_to_the_next(
    gateway, toy, served
):
    upstream, scene = await toy(name="good"), await gateway()
    dead = scene.announce(f"http://127.0.0.1:{free_port()}", name="dead")
    scene.announce(upstream.url, name="good").in_flight = 1
    assert (await scene.client.post("/v1/sessions", content=b"{}")).status_code == 200
    assert (scene.registry.pick("svc").id, dead.in_flight) == ("good", 0)
    scene = await served(fields={"name": "draining", "status": 503})
    answer = await scene.client.post("/v1/echo", content=b"why")
    assert (answer.status_code, answer.content, len(scene.upstream.seen)) == (503, b"why", 1)
    scene.announce((await toy(name="good")).url, name="good").in_flight = 1
    assert (await scene.client.post("/v1/echo")).headers["x-replica"] == "good"
    scene.app.state.gateway.proxy.budget = MemoryBudget(0)
    answer = await scene.client.post("/v1/echo", content=bytes(3 * 2**20))  # it can't be sent twice
    assert (answer.status_code, answer.headers.get("x-replica")) == (503, "draining")

    async def readyz(_request: Any) -> JSONResponse:
        return JSONResponse({"service": "svc"})

    scene = await gateway()
    known = scene.announce((await toy(extra=[Route("/readyz", readyz)])).url)
    assert await scene.registry.ask(known)
    for http, service in ((known.record.http, "other"), (f"http://127.0.0.1:{free_port()}", "svc")):
        assert not await scene.registry.ask(scene.announce(http, service=service))


async def test_a_request_that_kills_every_replica_is_given_up_and_others_there_may_send_again(gateway):
    scene = await gateway()
    async with cutting(b"") as (url, heard):
        scene.announce(url, name="only")
        assert ((await scene.client.post("/v1/echo", content=b"poison")).status_code, len(heard)) == (503, 4)
        scene.announce(url, name="only", out_of_memory=True).in_flight = 1
        answer = await scene.client.post("/v1/echo", content=b"picture")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


async def test_who_lost_its_last_replica_waits_for_the_next_until_the_deadline_and_nobody_for_what_never_was_ready(
    gateway, toy
):
    scene = await gateway()
    scene.announce("http://127.0.0.1:1", name="r", ready=False)
    answer = await scene.client.post("/v1/echo", timeout=2)
    assert (answer.status_code, answer.headers["retry-after"], "loading" in answer.json()["detail"]) == (503, "5", True)
    scene.announce(f"http://127.0.0.1:{free_port()}", name="r")
    answer = await scene.client.post("/v1/echo", headers={"x-fovea-deadline-ms": "300"})
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
    asking = asyncio.create_task(scene.client.post("/v1/echo", content=b"picture"))
    await asyncio.sleep(0.4)
    assert not asking.done()
    scene.announce((await toy(name="new")).url, name="r")
    assert (await asking).headers["x-replica"] == "new"


async def test_replicas_are_read_again_after_a_plugins_policy_has_failed(monkeypatch):
    monkeypatch.setattr(replica_registry, "POLL_INTERVAL_S", 0.01)
    polls = []

    async def poll():
        polls.append(0)
        if len(polls) == 1:
            raise KeyError("canary")

    polling = asyncio.create_task(replica_registry._repeat(poll))
    await until(lambda: len(polls) > 2)
    await cancel_tasks(polling)


async def test_requests_under_way_to_a_replica_that_is_silent_and_hangs_are_answered_by_another(gateway, toy):
    async def hang(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read(2**16)
        await asyncio.Event().wait()

    upstream, scene = await toy(), await gateway()
    async with scripted(hang) as url:
        hung = scene.announce(url, name="hung")
        asking = [asyncio.create_task(scene.client.post("/v1/echo", content=b"%d" % n)) for n in range(3)]
        await until(lambda: len(hung.attempts) == 3)
        hung.changed = -math.inf
        scene.announce(upstream.url, name="good")
        scene.registry._abort_hung()
        answers = await asyncio.gather(*asking)
    assert [(answer.status_code, answer.content) for answer in answers] == [(200, b"0"), (200, b"1"), (200, b"2")]


MODELS = {"data": [{"id": "pranet", "task": "segment", "ready": True, "service": "svc", "object": "model"}]}


class Replicas:
    """Announces replicas of `svc` in Redis and takes them away, as Ray's autoscaling would."""

    def __init__(self, url: str) -> None:
        self.link = redis.Redis.from_url(url)

    def start(self, url: str, **changed: object) -> None:
        record = ReplicaRecord(
            id="r1", service="svc", http=url, pid=1, ready=True, models=("pranet",), routes=("/v1/echo",),
            seen=time.time(),
        )  # fmt: skip
        self.link.hset(replicas_key("svc"), "r1", record.model_copy(update=changed).model_dump_json())

    def stop(self) -> None:
        self.link.delete(replicas_key("svc"))

    def is_wanted(self) -> bool:
        return bool(self.link.exists(wanted_key("svc")))


@pytest.fixture
def announced(redis_url):
    made = Replicas(redis_url)
    yield made
    made.link.close()


@pytest.fixture
def start(gateway, redis_url):
    return partial(gateway, redis_url=redis_url, on_demand_services="svc")


@pytest.fixture
async def asleep(start, toy, announced):
    """A gateway whose service was there once and has no replica now; and the upstream that it will have."""
    upstream = await toy(documents={"models": MODELS})
    announced.start(upstream.url)
    scene = await start()
    await scene.client.get("/v1/models")
    announced.stop()
    await until(lambda: not scene.registry.list_ready("svc"), 10, "the replica is gone")
    return scene, upstream


async def test_a_service_without_replicas_is_ready_and_lists_its_models(asleep, start):
    old, _ = asleep
    await until(lambda: old.registry.on_demand.is_known("svc"), 10, "what it served is kept")
    for scene in (old, await start()):  # one that starts meanwhile reads from Redis what the other kept
        ready = await scene.client.get("/readyz")
        assert (ready.status_code, ready.json()["services"]["svc"]["ready"]) == (200, 0)
        assert ready.json()["services"]["svc"]["on_demand"] is True
        [entry] = (await scene.client.get("/v1/models")).json()["data"]
        assert (entry["id"], entry["task"], entry["ready"]) == ("pranet", "segment", True)


async def test_a_request_is_held_starts_a_replica_and_is_answered_by_it_or_told_when_to_retry(asleep, announced):
    scene, upstream = asleep
    assert not announced.is_wanted()
    answer = await scene.client.post("/v1/echo", headers={"x-fovea-deadline-ms": "400"})
    assert (answer.status_code, answer.headers["retry-after"], announced.is_wanted()) == (503, "5", True)
    assert answer.json()["detail"] == "No replica of svc is ready: one is being started."
    asking = [asyncio.create_task(scene.client.post("/v1/echo", content=b"picture %d" % n)) for n in range(3)]
    await until(announced.is_wanted, 5, "the service is wanted")
    assert 0 < announced.link.ttl(wanted_key("svc")) <= WANTED_S
    assert 'fovea_waiting_requests{service="svc"} 3.0' in (await scene.client.get("/metrics")).text
    announced.start(upstream.url, ready=False)  # loading
    await asyncio.sleep(0.7)
    assert not any(task.done() for task in asking)
    announced.start(upstream.url)
    assert [(await task).content for task in asking] == [b"picture 0", b"picture 1", b"picture 2"]
    assert 'fovea_waiting_requests{service="svc"} 0.0' in (await scene.client.get("/metrics")).text


async def test_more_requests_of_a_tenant_than_may_wait_are_refused_at_once(start, toy, announced):
    announced.start((await toy()).url)
    scene = await start(auth="keys", max_queue_size=2, max_batch_size=1, rate_limit_rpm=1000)
    _, key = scene.app.state.gateway.keys.add("alice", ("infer",))
    announced.stop()
    await until(lambda: not scene.registry.list_ready("svc"), 10, "the replica is gone")
    send = {"headers": {"authorization": f"Bearer {key}", "x-fovea-deadline-ms": "1500"}}
    answers = await asyncio.gather(*(scene.client.post("/v1/echo", **send) for _ in range(6)))
    assert {429, 503} <= {a.status_code for a in answers} <= {429, 503, 504}
    assert sum(a.status_code == 429 for a in answers) == 3
    assert all("retry-after" in a.headers for a in answers if a.status_code in {429, 503})


async def test_grpc_is_held_likewise(front, redis_url, replica, announced):
    _, address, _ = await replica("late")
    announced.start("http://127.0.0.1:1", grpc=address)
    _, channel = await front(redis_url=redis_url, on_demand_services="svc")
    announced.stop()
    await asyncio.sleep(1.2)
    asking = asyncio.create_task(call(channel, "ModelInfer", INFER))
    await until(announced.is_wanted, 5, "the service is wanted")
    announced.start("http://127.0.0.1:1", grpc=address)
    assert await asking == b"late|" + INFER
