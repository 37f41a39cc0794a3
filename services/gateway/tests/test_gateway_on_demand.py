"""Services scaled to zero, before a real Redis: known without replicas, started by a request, which is held."""

import asyncio
import time

import pytest
import redis

from fovea.api.replica import WANTED_S, ReplicaRecord, replicas_key, wanted_key
from services.gateway.tests.grpc_front import INFER, call
from tests.harness.waiting import until

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
def replicas(redis_url):
    made = Replicas(redis_url)
    yield made
    made.link.close()


@pytest.fixture
async def start(gateway, redis_url):
    async def started(**changed):
        return await gateway(redis_url=redis_url, on_demand_services="svc", **changed)

    return started


@pytest.fixture
async def asleep(start, toy, replicas):
    """A gateway whose service was there once and has no replica now; and the upstream that it will have."""
    upstream = await toy(documents={"models": MODELS})
    replicas.start(upstream.url)
    scene = await start()
    await scene.client.get("/v1/models")
    replicas.stop()
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


async def test_a_request_is_held_starts_a_replica_and_is_answered_by_it(asleep, replicas):
    scene, upstream = asleep
    assert not replicas.is_wanted()
    asking = [asyncio.create_task(scene.client.post("/v1/echo", content=b"picture %d" % n)) for n in range(3)]
    await until(replicas.is_wanted, 5, "the service is wanted")
    assert 0 < replicas.link.ttl(wanted_key("svc")) <= WANTED_S
    assert 'fovea_waiting_requests{service="svc"} 3.0' in (await scene.client.get("/metrics")).text
    replicas.start(upstream.url, ready=False)  # loading
    await asyncio.sleep(0.7)
    assert not any(task.done() for task in asking)
    replicas.start(upstream.url)
    assert [(await task).content for task in asking] == [b"picture 0", b"picture 1", b"picture 2"]
    assert 'fovea_waiting_requests{service="svc"} 0.0' in (await scene.client.get("/metrics")).text


async def test_a_request_whose_replica_is_late_gets_503_and_when_to_retry(asleep, replicas):
    scene, _ = asleep
    answer = await scene.client.post("/v1/echo", headers={"x-fovea-deadline-ms": "400"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json()["detail"] == "No replica of svc is ready: one is being started."
    assert replicas.is_wanted()


async def test_more_requests_of_a_tenant_than_may_wait_are_refused_at_once(start, toy, replicas):
    upstream = await toy()
    replicas.start(upstream.url)
    scene = await start(auth="keys", max_queue_size=2, max_batch_size=1, rate_limit_rpm=1000)
    _, key = scene.app.state.gateway.keys.add("alice", ("infer",))
    replicas.stop()
    await until(lambda: not scene.registry.list_ready("svc"), 10, "the replica is gone")
    send = {"headers": {"authorization": f"Bearer {key}", "x-fovea-deadline-ms": "1500"}}
    answers = await asyncio.gather(*(scene.client.post("/v1/echo", **send) for _ in range(6)))
    assert {429, 503} <= {a.status_code for a in answers} <= {429, 503, 504}
    assert sum(a.status_code == 429 for a in answers) == 3
    assert all("retry-after" in a.headers for a in answers if a.status_code in {429, 503})


async def test_grpc_is_held_likewise(front, redis_url, replica, replicas):
    _, address, _ = await replica("late")
    replicas.start("http://127.0.0.1:1", grpc=address)
    _, channel = await front(redis_url=redis_url, on_demand_services="svc")
    replicas.stop()
    await asyncio.sleep(1.2)
    asking = asyncio.create_task(call(channel, "ModelInfer", INFER))
    await until(replicas.is_wanted, 5, "the service is wanted")
    replicas.start("http://127.0.0.1:1", grpc=address)
    assert await asking == b"late|" + INFER
