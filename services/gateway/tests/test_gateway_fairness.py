"""A flood of one tenant waits behind itself: another is served as if it were quiet."""

import asyncio
import types
from typing import Any

import httpx2
import pytest

from fovea.errors import DeadlineExceeded, QueueFull
from services.gateway.policy.caller import Caller, KeyLimits
from services.gateway.policy.fair_queue import FairQueue
from services.gateway.routing.replica_registry import ReplicaRegistry
from shared.settings import Settings
from shared.telemetry import QUEUE_TIME
from tests.harness.scripted import scripted
from tests.harness.waiting import until


@pytest.fixture
def fair():
    settings = Settings(max_queue_size=5)
    return FairQueue(settings, ReplicaRegistry(settings))


def soon(seconds: float = 5) -> float:
    return asyncio.get_running_loop().time() + seconds


async def work(fair: FairQueue, order: list[str], tenant: str, *, capacity: int = 2, weight: float = 1.0) -> int:
    """Take a place for a moment; return how many were taken then."""
    async with fair.place("svc", tenant, capacity=capacity, share=1, deadline=soon(60), weight=weight):
        order.append(tenant)
        await asyncio.sleep(0.01)
        return fair._services["svc"].in_flight


async def test_requests_are_counted_whether_they_are_served_or_wait_and_a_tenant_alone_has_all_places(fair):
    taken = await asyncio.gather(*(work(fair, [], "alice", capacity=5) for _ in range(10)))
    assert (len(taken), max(taken), fair.count_requests("svc")) == (10, 5, 0)
    async with fair.place("svc", "alice", capacity=1, share=1, deadline=soon()):
        others = [asyncio.create_task(work(fair, [], name, capacity=1)) for name in ("alice", "alice", "bob")]
        await asyncio.sleep(0)
        assert (fair.count_requests("svc"), fair.count_requests("other")) == (4, 0)
    await asyncio.gather(*others)
    assert fair.count_requests("svc") == 0


async def test_a_flood_of_one_waits_behind_itself_and_another_is_served_at_once(gateway, ring):
    keys = {name: ring.add(name, ("infer",))[1] for name in ("alice", "bob")}
    scene, arrived, over = await gateway(auth="keys", max_batch_size=1), [], asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        arrived.extend(name for name in keys if f"x-fovea-tenant: {name}" in head.decode().lower())
        await over.wait()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    def ask(name: str) -> asyncio.Task[httpx2.Response]:
        return asyncio.create_task(scene.client.get("/v1/echo", headers={"x-api-key": keys[name]}))

    async with scripted(serve) as url:
        scene.announce(url, slots=1)
        asking = [ask("alice") for _ in range(20)]
        await until(lambda: scene.app.state.gateway.fair.count_requests("svc") == 20)
        asking.append(ask("bob"))
        await until(lambda: "bob" in arrived)
        assert arrived == ["alice", "bob"]
        over.set()
        assert {answer.status_code for answer in await asyncio.gather(*asking)} == {200}


class Places:
    """Requests that hold a place until they are released."""

    def __init__(self, fair: FairQueue, **common: Any) -> None:
        self.fair, self.common = fair, {"capacity": 1, "share": 1} | common
        self.order: list[str] = []
        self._leave: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, name: str, **own: Any) -> bool:
        """Ask for a place for `tenant` + number; whether it is had at once."""
        self._leave[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._hold(name, own))
        await settle()
        return name in self.order

    async def leave(self, name: str) -> None:
        self._leave[name].set()
        await settle()

    async def leave_all(self) -> None:
        """Let requests leave in the order in which they got their places."""
        for place in range(len(self._tasks)):
            await self.leave(self.order[place])
        await asyncio.gather(*self._tasks.values())

    async def _hold(self, name: str, own: dict[str, Any]) -> None:
        async with self.fair.place("svc", name[:-1], deadline=soon(), **self.common | own):
            self.order.append(name)
            await self._leave[name].wait()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
def clock(monkeypatch):
    now = types.SimpleNamespace(seconds=0.0)
    fake = types.SimpleNamespace(monotonic=lambda: now.seconds, perf_counter=lambda: now.seconds)
    monkeypatch.setattr("services.gateway.policy.fair_queue.time", fake)
    return now


async def test_a_tenant_with_nothing_in_flight_is_let_in_beyond_the_capacity(fair):
    places = Places(fair, capacity=2, share=1)
    assert [await places.ask(name) for name in ("ann1", "ann2", "ann3")] == [True, True, False]
    assert [await places.ask(name) for name in ("bob1", "cid1", "dan1")] == [True, True, False]
    await places.leave("ann1")  # three are in flight: a place for dan, who has none, but not for ann's third
    assert places.order[-1] == "dan1"
    await places.leave("bob1")
    assert "ann3" not in places.order
    await places.leave_all()


@pytest.mark.parametrize(("share", "weight", "places_had"), [
    (2, 1, 2), (2, 0.1, 1), (2, 1.5, 3), (2, 0.8, 1), (4, 1, 4), (9, 1, 4),
])  # fmt: skip
async def test_a_share_follows_the_weight(fair, share, weight, places_had):
    places = Places(fair, capacity=5, share=share)
    assert await places.ask("bob1")
    had = [await places.ask(f"ann{number}", weight=weight) for number in range(1, 6)]
    assert had == [True] * places_had + [False] * (5 - places_had)
    await places.leave_all()


@pytest.mark.parametrize(("passed", "is_alone"), [(9.9, False), (10.0, True)])
async def test_a_share_is_kept_for_ten_seconds_after_a_request(fair, clock, passed, is_alone):
    clock.seconds = 100.0
    places = Places(fair, capacity=2, share=1)
    await places.ask("bob1")
    clock.seconds += 50
    await places.leave("bob1")
    clock.seconds += passed
    assert [await places.ask("ann1"), await places.ask("ann2")] == [True, is_alone]
    clock.seconds += 20  # bob is forgotten, so all places are ann's
    assert await places.ask("ann3") is False
    await places.leave_all()


async def serve_in_turn(places: Places, requests: list[tuple[str, float]]) -> list[str]:
    """Queue requests behind two that hold all places, one of them for ever; the order in which they are served."""
    for name, weight in (("yan1", 1.0), ("zoe1", 1.0), *requests):
        await places.ask(name, weight=weight)
    assert places.order[-2:] == ["yan1", "zoe1"]
    begun = len(places.order)
    await places.leave("yan1")
    for place in range(begun, begun + len(requests)):
        await places.leave(places.order[place])
    await places.leave("zoe1")
    return places.order[begun:]


@pytest.mark.parametrize("weight", [1.0, 0.25])
async def test_who_was_served_least_for_its_weight_is_next(fair, weight):
    requests = [*((f"ann{number}", weight) for number in (1, 2, 3)), *((f"bob{n}", 2 * weight) for n in (1, 2, 3, 4))]
    order = await serve_in_turn(Places(fair), requests)
    assert order == ["ann1", "bob1", "bob2", "ann2", "bob3", "bob4", "ann3"]


async def test_a_newcomer_does_not_catch_up_on_what_others_had_before(fair):
    before = Places(fair)
    for name in ("eve1", "eve2", *(f"ann{number}" for number in range(1, 6))):
        await before.ask(name, weight=1e-20 if name[0] == "e" else 1)  # as little as a key may have
        await before.leave(name)
    places = Places(fair)
    requests = [(f"{name}{number}", 1.0) for name in ("ann", "bob") for number in (1, 2, 3)]
    assert await serve_in_turn(places, requests) == ["bob1", "ann1", "bob2", "ann2", "bob3", "ann3"]


async def test_a_place_given_to_a_request_that_is_cancelled_goes_to_the_next(fair):
    places = Places(fair)
    for name in ("ann1", "ann2", "ann3"):
        await places.ask(name)
    turn = fair._services["svc"].lines["ann"].waiting[0]
    places._leave["ann1"].set()
    while not turn.done():  # noqa: ASYNC110
        await asyncio.sleep(0)
    places._tasks["ann2"].cancel()  # the place is ann2's, which does not run yet
    await settle()
    assert places.order == ["ann1", "ann3"]
    await places.leave("ann3")
    assert fair._services["svc"].in_flight == 0


async def test_what_waits_too_long_or_too_many_is_refused_and_told_what_to_do(fair):
    places = Places(fair)
    for number in range(6):
        await places.ask(f"ann{number}")
    with pytest.raises(QueueFull) as full:
        await places._hold("ann6", {})
    assert full.value.detail == "5 of your requests wait for svc; the limit is 5."
    assert (full.value.hint, full.value.retry_after) == ("Send fewer at a time, or send them as jobs.", 1)
    places._tasks.pop("ann5").cancel()
    await settle()
    with pytest.raises(DeadlineExceeded) as late:
        await fair.place("svc", "ann", capacity=1, share=1, deadline=soon(0.01)).__aenter__()
    assert late.value.detail == "No place at svc was free before the deadline (FOVEA_REQUEST_TIMEOUT_S)."
    assert late.value.hint == "Send it as a job, or allow more time."
    await places.leave_all()
    await places.ask("bob1")
    with pytest.raises(DeadlineExceeded):
        await fair.place("svc", "bob", capacity=1, share=1, deadline=soon(-1)).__aenter__()
    assert not fair._services["svc"].lines["bob"].waiting
    await places.leave("bob1")
    assert fair._services["svc"].in_flight == 0


async def test_tenants_that_have_gone_are_forgotten(fair, clock):
    places = Places(fair)
    for number in range(1000):
        async with fair.place("svc", f"tenant-{number}", capacity=2, share=1, deadline=soon()):
            pass
    clock.seconds = 11.0
    await work(fair, [], "tenant-7")
    assert len(fair._services["svc"].lines) == 1000
    await work(fair, [], "ann")
    assert set(fair._services["svc"].lines) == {"tenant-7", "ann"}
    assert await places.ask("ann1")
    await places.leave_all()


async def test_time_in_the_queue_is_recorded(fair, clock, monkeypatch):
    waits: list[tuple[object, float]] = []
    monkeypatch.setattr("services.gateway.policy.fair_queue.observe", lambda *args: waits.append(args))
    monkeypatch.setattr("services.gateway.policy.fair_queue.record_span", lambda *args: waits.append(args))
    places = Places(fair)
    await places.ask("ann1")
    await places.ask("ann2")
    clock.seconds = 3.0
    await places.leave_all()
    queue_time = QUEUE_TIME.labels("gateway", "")
    assert waits == [(queue_time, 0.0), ("queue", 0.0), (queue_time, 3.0), ("queue", 3.0)]


@pytest.mark.parametrize(("slots", "capacity", "share"), [([], 4, 1), ([2, 6], 10, 8), ([5], 5, 5)])
async def test_places_are_those_of_the_ready_replicas(slots, capacity, share):
    ready = [types.SimpleNamespace(record=types.SimpleNamespace(slots=each)) for each in slots]
    registry = types.SimpleNamespace(list_ready=lambda service: ready if service == "svc" else [])
    fair = FairQueue(Settings(max_batch_size=4), registry)
    caller = Caller("ann", frozenset(), "k1", KeyLimits(weight=2.5))
    async with fair.slot(caller, "svc", soon()):
        state = fair._services["svc"]
        assert (state.capacity, state.share, state.lines["ann"].weight) == (capacity, share, 2.5)


async def test_a_tenant_that_is_still_served_keeps_its_share(fair, clock):
    places = Places(fair, capacity=3, share=1)
    await places.ask("bob1")
    clock.seconds = 20.0
    assert [await places.ask("ann1"), await places.ask("ann2")] == [True, False]
    await places.leave_all()


def test_a_place_is_waited_for_until_the_caller_s_deadline(monkeypatch, fair):
    monkeypatch.setattr(fair, "place", lambda *names, **facts: (*names, facts["deadline"]))
    assert fair.slot(Caller("ann", frozenset(), "k1"), "svc", 12.5) == ("svc", "ann", 12.5)
