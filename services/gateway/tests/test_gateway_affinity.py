"""Which replicas count, by their records in a real Redis, and which of them a request goes to."""

import asyncio
import json
import math
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as ToyRoute

from fovea.api.replica import HEARTBEAT_TTL_S, HOLDS_HEADER, ReplicaRecord, replicas_key
from services.gateway.routing import load_balancer, replica_registry, static_upstreams
from services.gateway.routing.affinity import BLOCK_BYTES, MAX_TOKENS, AffinityKey, _find_key_in_body, held_key
from services.gateway.routing.load_balancer import FREE_SLOTS, LOAD_FACTOR, LoadBalancer
from services.gateway.routing.replica_registry import ReplicaRegistry
from services.gateway.routing.static_upstreams import StaticUpstream
from shared.settings import Settings
from tests.harness.waiting import sleep_through_a_cancel


@dataclass
class Stand:
    id: str
    in_flight: int = 0
    slots: int = 16


def chat(*texts: str, **more: Any) -> bytes:
    return json.dumps({"model": "smol", "messages": [{"role": "user", "content": t} for t in texts], **more}).encode()


def key(*texts: str, tenant: str = "a", **more: Any) -> AffinityKey:
    return _find_key_in_body(tenant, chat(*texts, **more))


LONG = "".join(chr(97 + place * place % 26) for place in range(4000))


def test_keys_begin_alike_for_alike_prompts_of_one_tenant_and_model_and_what_names_nothing_has_none():
    one, two = key(LONG + "?"), key(LONG + " more", "and more", stream=True, max_tokens=3)
    assert (one.home, one.chain[:6], len(one.chain)) == (two.home, two.chain[:6], 4000 // BLOCK_BYTES)
    assert key(LONG).home != key(LONG, tenant="b").home
    assert key(LONG).home != key(LONG, model="other").home
    assert held_key("a", "doc").home != held_key("b", "doc").home
    odd = (b"", b"{", b"[]", b'{"messages": []}', chat("short"), b'{"a":' * 5, b'"messages": "x"', b'{"prompt": 3}')
    for body in (*odd, b"\xff" * 999, b'{"prompt": "%b", "x": [' % (b"a" * 4096) + b"[]," * MAX_TOKENS):
        assert _find_key_in_body("a", body) is None


@pytest.mark.parametrize("name", ["session_id", "document_id", "previous_response_id"])
def test_a_session_or_a_document_stands_for_its_request_wherever_it_is_named(name):
    assert (key(LONG, **{name: "s-1"}), key(LONG, **{name: None})) == (held_key("a", "s-1"), key(LONG))
    assert _find_key_in_body("a", b'{"%b": "s-1", "messages": [' % name.encode()) == held_key("a", "s-1")


@given(st.binary(max_size=300))
def test_no_body_breaks_the_search_for_a_key(body):
    _find_key_in_body("a", b'{"messages":' + body)


def test_homes_are_agreed_on_spread_and_bounded_and_a_replica_that_leaves_moves_only_its_own(monkeypatch):
    replicas, keys = [Stand(f"r{i}") for i in range(4)], [key(f"{number}" + LONG) for number in range(400)]
    before, other = ([LoadBalancer().pick("svc", seen, one).id for one in keys] for seen in (replicas, replicas[::-1]))
    assert before == other, "gateways agree without talking"
    after = [LoadBalancer().pick("svc", replicas[:3], each).id for each in keys]
    assert min(Counter(before).values()) > 60
    assert all(old == new for old, new in zip(before, after, strict=True) if old != "r3")
    monkeypatch.setattr(load_balancer, "MAX_PLACES", 100)
    balancer, replicas = LoadBalancer(), [Stand("a"), Stand("b")]
    for number in range(100):
        balancer.pick("svc", replicas, key(f"{number}" + LONG))
    assert len(balancer._places) == 100
    assert LoadBalancer().pick("svc", [Stand("a", 2), Stand("b", 1), Stand("c", 3)]).id == "b", "without a key"


def test_a_conversation_stays_where_it_began_and_a_shared_system_prompt_does_not_draw_all_to_one_replica():
    balancer, replicas = LoadBalancer(), [Stand(f"r{i}") for i in range(8)]
    for number in range(30):
        texts = [f"{number}" + LONG[:600]]
        begun = balancer.pick("svc", replicas, key(*texts))
        for turn in range(6):
            texts += [f"{turn}" + LONG[:400]]
            assert balancer.pick("svc", replicas, key(*texts)) is begun
    balancer, replicas = LoadBalancer(), [Stand(f"r{i}") for i in range(4)]
    picked = Counter(balancer.pick("svc", replicas, key(LONG[:700], f"{n}" + LONG)).id for n in range(80))
    assert len(picked) == 4


@given(st.lists(st.integers(0, 30), min_size=2, max_size=8), st.integers(0, 40))
def test_nobody_is_given_more_than_the_bound(loads, number):
    replicas = [Stand(f"r{i}", load) for i, load in enumerate(loads)]
    picked = LoadBalancer().pick("svc", replicas, key(f"{number}" + LONG))
    bound = max(FREE_SLOTS, math.ceil(LOAD_FACTOR * (sum(loads) + 1) / len(loads)))
    assert picked.in_flight < bound


def test_what_is_beyond_the_bound_goes_to_the_next_and_comes_back_and_a_holder_that_is_gone_is_none():
    balancer, replicas = LoadBalancer(), [Stand(f"r{i}") for i in range(4)]
    wanted = key(LONG)
    home = balancer.pick("svc", replicas, wanted)
    home.in_flight = 12
    second = balancer.pick("svc", replicas, wanted)
    assert (second is not home, balancer.pick("svc", replicas, wanted) is second) == (True, True)
    home.in_flight = 0
    assert balancer.pick("svc", replicas, wanted) is home
    balancer, replicas = LoadBalancer(), [Stand("a"), Stand("b"), Stand("c")]
    balancer.remember_affinity(held_key("t", "doc"), "b")
    assert balancer.pick("svc", replicas, held_key("t", "doc")).id == "b"
    successor = balancer.pick("svc", [replicas[0], replicas[2]], held_key("t", "doc"))
    assert (successor.id != "b", balancer.pick("svc", replicas, held_key("t", "doc")) is successor) == (True, True)


LLM = ("/v1/chat/completions", "/v1/documents", "/v1/documents/{document_id}")


async def four(gateway: Any, toy: Any, **changed: Any) -> Any:
    scene = await gateway(**changed)
    for name in ("a", "b", "c", "d"):

        async def add(_request: Request, name: str = name) -> Response:
            return JSONResponse({"id": f"doc-of-{name}"}, headers={HOLDS_HEADER: f"doc-of-{name}", "x-replica": name})

        upstream = await toy(name=name, extra=[ToyRoute("/v1/documents", add, methods=["POST"])])
        scene.announce(upstream.url, service="llm", name=name, routes=LLM, affine=LLM)
    return scene


async def replica_of(client: httpx2.AsyncClient, body: bytes, path: str = "/v1/chat/completions") -> str:
    answer = await client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    return answer.headers["x-replica"]


async def test_requests_reach_the_replica_of_their_beginning_or_document_and_the_next_once_it_is_lost(gateway, toy):
    scene = await four(gateway, toy)
    for number in range(8):
        text = f"{number}" + LONG
        picked = {await replica_of(scene.client, chat(text, question)) for question in ("who?", "where?", "why?")}
        assert len(picked) == 1
    for number in range(12):
        added = await scene.client.post("/v1/documents", json={"text": f"{number}"})
        assert HOLDS_HEADER not in added.headers
        name = added.json()["id"]
        assert f"doc-of-{await replica_of(scene.client, chat('what?', document_id=name))}" == name
        gone = await scene.client.delete(f"/v1/documents/{name}")
        assert f"doc-of-{gone.headers['x-replica']}" == name
    home = await replica_of(scene.client, chat(LONG))
    scene.registry._services["llm"].replicas[home].suspect_until = math.inf
    picked = {await replica_of(scene.client, chat(LONG)) for _ in range(5)}
    assert (len(picked), home in picked) == (1, False)
    scene = await four(gateway, toy, load_balancing="least-loaded")
    assert len({await replica_of(scene.client, chat(LONG)) for _ in range(30)}) > 1


class Watching(ReplicaRegistry):
    """A registry of the service `svc`, and Redis, where replicas announce themselves."""

    def __init__(self, url: str, **settings: Any) -> None:
        super().__init__(Settings(**{"redis_url": url, "enabled_services": "svc", **settings}))
        self.redis = redis.Redis.from_url(url)

    async def stop(self) -> None:
        self.redis.close()
        await super().stop()

    def announce(self, name: str = "r1", service: str = "svc", **changed: Any) -> None:
        facts: dict[str, Any] = {
            "id": name, "service": service, "http": "http://127.0.0.1:1", "pid": 1, "ready": True,
            "models": ("pranet",), "routes": ("/v1/segment",), "seen": time.time(), **changed,
        }  # fmt: skip
        self.redis.hset(replicas_key(service), name, ReplicaRecord(**facts).model_dump_json())

    async def hear(self, *names: str, **facts: Any) -> None:
        self.announce(*names, **facts)
        await self.poll_redis()

    async def lose(self, name: str, service: str = "svc") -> None:
        self.redis.hdel(replicas_key(service), name)
        await self.poll_redis()


@pytest.fixture
async def registry(redis_url, clock):
    clock.govern(replica_registry)
    watching = Watching(redis_url)
    yield watching
    await watching.stop()


async def test_a_replica_that_announces_itself_is_found_with_its_routes_and_chosen_once_it_is_ready(registry):
    await registry.poll_redis()
    assert (registry.unready_services, registry.is_complete) == (["svc"], False)
    registry.announce()
    registry.announce("x1", "surprise", models=("other",), routes=())
    registry._scan_due = 0
    await registry.poll_redis()
    assert (registry.services, registry.is_complete) == (["surprise", "svc"], True)
    assert (registry.pick("svc").id, registry.routes.find("/v1/segment").services) == ("r1", ("svc",))
    assert registry.routes.find_service("other") == "surprise"
    await registry.hear(ready=False)
    assert (registry.pick("svc"), [t.id for t in registry.list_alive("svc")]) == (None, ["r1"])
    await registry.hear(ready=True)
    assert registry.pick("svc").id == "r1"
    assert registry.is_recovering("svc")
    registry.mark_suspect(registry.pick("svc"))
    assert registry.pick("svc") is None
    await registry.hear()
    assert registry.pick("svc").id == "r1"


async def test_silence_ends_a_replica_and_its_routes_stay_known(registry, clock):
    await registry.hear()
    clock.advance(HEARTBEAT_TTL_S - 0.1)
    await registry.poll_redis()
    assert registry.pick("svc").id == "r1"
    clock.advance(0.2)
    await registry.poll_redis()
    assert (registry.pick("svc"), registry.unready_services) == (None, ["svc"])
    assert registry.routes.find("/v1/segment") is not None
    await registry.hear()
    assert registry.pick("svc").id == "r1"


async def test_a_starved_replica_keeps_its_place_as_long_as_it_answers(registry, clock):
    starved, asked = {"r1"}, []

    async def ask(replica):
        asked.append(replica.id)
        return replica.id in starved

    registry.ask = ask
    registry.announce()
    registry.announce("loading", ready=False)
    for _ in range(9):
        await registry.poll_redis()
        await asyncio.sleep(0)
        assert registry.pick("svc").id == "r1"
        clock.advance(HEARTBEAT_TTL_S / 3)
    assert set(asked) == {"r1"}
    starved.clear()
    clock.advance(HEARTBEAT_TTL_S)
    await registry.poll_redis()
    await asyncio.sleep(0)
    assert (registry.pick("svc"), "fell silent" in registry.explain_unready("svc")) == (None, True)
    await registry.hear("r2", seen=clock.time())
    asked.clear()
    await registry.poll_redis()
    assert (registry.pick("svc").id, asked) == ("r2", []), "who has another need not ask"


async def test_what_a_replica_said_of_its_end_is_the_reason(registry):
    assert "none has announced itself" in registry.explain_unready("svc")
    end = {"trouble": "It outgrew its memory (9 of 8 bytes).", "out_of_memory": True}
    for facts, told in (({}, "its replicas are still loading"), (end, "outgrew its memory")):
        await registry.hear(ready=False, **facts)
        assert (told in registry.explain_unready("svc"), registry.is_recovering("svc")) == (True, False)


async def test_a_replica_that_cannot_start_is_a_reason_and_nothing_else(registry):
    failed = {"name": "svc-start", "http": "", "ready": False, "models": (), "routes": ()}
    await registry.hear(**failed, trouble="It can't start: SyntaxError.")
    assert "It can't start: SyntaxError" in registry.explain_unready("svc")
    assert (registry.list_alive("svc"), registry.is_complete) == ([], False)
    await registry.hear()
    assert registry.pick("svc").id == "r1"
    await registry.lose("r1")
    await registry.hear(**failed, trouble="It can't start: ValueError.")
    assert registry.routes.find("/v1/segment").services == ("svc",)  # it is away, and not unknown
    assert "ValueError" in registry.explain_unready("svc")


async def test_what_is_under_way_to_a_silent_replica_is_ended_once_another_can_take_it(registry, clock):
    await registry.hear()
    ended: list[str] = []
    registry.pick("svc").attempts.add(type("Attempt", (), {"abort": lambda _: ended.append("r1")})())
    nearly = replica_registry.ABORT_AFTER_S - 1
    for seconds, is_ready, found in ((nearly, True, []), (1.1, False, []), (0.1, True, ["r1"])):
        clock.advance(seconds)
        await registry.hear("r2", ready=is_ready, seen=clock.time())
        assert ended == found


async def test_records_that_are_old_or_none_are_passed_over_a_wrong_clock_or_one_taken_back_is_known(registry, clock):
    for turn in range(4):
        registry.announce("behind", seen=time.time() - 3600 + turn)
        await registry.hear("ahead", seen=time.time() + 3600 + turn)
        clock.advance(HEARTBEAT_TTL_S / 2)
    assert {t.id for t in registry.list_ready("svc")} == {"behind", "ahead"}
    for name in ("behind", "ahead"):
        await registry.lose(name)
    for name, seen in (("r1", 0), ("r2", 0), ("old", -100)):
        registry.announce(name, seen=clock.time() + seen)
    registry.redis.hset(replicas_key("svc"), mapping={"bad": "{}", "worse": b"\xff"})
    await registry.poll_redis()
    assert {t.id for t in registry.list_ready("svc")} == {"r1", "r2"}
    await registry.lose("r1")
    assert [t.id for t in registry.list_alive("svc")] == ["r2"]


async def test_what_the_last_replica_served_stays_known_until_the_next_one_comes(registry, clock):
    await registry.hear("x1", "surprise")
    await registry.lose("x1", "surprise")
    await registry.poll_redis()
    assert (registry.list_alive("surprise"), registry.unready_services) == ([], ["surprise", "svc"])
    assert "It was stopped" in registry.explain_unready("surprise")
    assert registry.is_recovering("surprise")
    assert registry.routes.find("/v1/segment").services == ("surprise",)
    await registry.hear("x2", "surprise", routes=("/v1/other",), seen=clock.time())
    assert [replica.id for replica in registry.list_ready("surprise")] == ["x2"]
    assert registry.routes.find("/v1/segment") is None
    await registry.lose("x2", "surprise")
    clock.advance(replica_registry.FORGET_S)
    await registry.poll_redis()
    assert registry.services == ["svc"]


async def test_polls_at_once_do_not_end_each_other_where_a_service_goes(registry, monkeypatch, clock):
    await registry.hear("x1", "surprise")
    registry.redis.delete(replicas_key("surprise"))
    clock.advance(replica_registry.FORGET_S + 1)
    read, both = registry._redis.hgetall, asyncio.Barrier(2)

    async def read_together(key):
        found = await read(key)
        if key == replicas_key("surprise"):
            await both.wait()  # the loop's poll, and the one for a request that lost a replica
        return found

    monkeypatch.setattr(registry._redis, "hgetall", read_together)
    await asyncio.gather(registry.poll_redis(), registry.poll_redis())
    assert registry.services == ["svc"]


async def test_the_last_known_replicas_stand_while_redis_is_away_and_for_a_lease_after(own_redis, clock):
    clock.govern(replica_registry)
    registry = Watching(own_redis.url)
    await registry.hear("gone")
    clock.advance(HEARTBEAT_TTL_S + 0.1)
    await registry.hear("r1", seen=clock.time())
    own_redis.kill()
    clock.advance(HEARTBEAT_TTL_S + 0.1)
    await registry.poll_redis()
    assert (registry.redis_up, [t.id for t in registry.list_ready("svc")]) == (False, ["r1"])
    own_redis.start()
    registry.redis.flushall()
    await registry.poll_redis()
    assert (registry.redis_up, [t.id for t in registry.list_ready("svc")]) == (True, ["r1"])
    clock.advance(HEARTBEAT_TTL_S - 0.1)
    await registry.poll_redis()
    assert [t.id for t in registry.list_ready("svc")] == ["r1"]
    clock.advance(0.2)
    await registry.poll_redis()
    await registry.poll_redis()
    assert registry.list_ready("svc") == []
    await registry.stop()


async def test_a_gateway_whose_redis_or_fixed_upstream_is_not_there_yet_starts():
    fixed = {"static_upstreams": "medical-seg=http://127.0.0.1:1"}
    for place, redis_up, known in (({"redis_url": "redis://127.0.0.1:1"}, False, []), (fixed, None, ["medical-seg"])):
        registry = ReplicaRegistry(Settings(**place))
        await registry.start()
        assert (registry.redis_up, registry.services, registry.unready_services) == (redis_up, known, known)
        assert not registry.is_complete
        await registry.stop()


async def test_a_fixed_upstream_is_asked_what_it_serves_and_wins_over_records(redis_url, toy):
    paths = {"/v1/segment": {}, "/livez": {}, "/v2/models/{name}": {}, "/": {}}
    upstream = await toy(documents={"models": {"data": [{"id": "pranet"}]}, "openapi": {"paths": paths}})
    where = f"svc={upstream.url}|grpc://127.0.0.1:7"
    registry = Watching(redis_url, enabled_services="", static_upstreams=where)
    registry.announce()
    await registry.start()
    (record,) = [replica.record for replica in registry.list_ready("svc")]
    assert (record.http, record.grpc) == (upstream.url, "127.0.0.1:7")
    assert (record.models, record.routes) == (("pranet",), ("/v1/segment",))
    await registry.stop()


async def test_what_a_busy_fixed_upstream_does_not_tell_stays_as_it_was(toy, clock, monkeypatch):
    clock.govern(static_upstreams)
    upstream = await toy(documents={"models": {"data": [{"id": "pranet"}]}, "openapi": {"paths": {"/v1/segment": {}}}})
    fixed, silent = StaticUpstream("svc", upstream.url, None), {"/openapi.json"}
    fetch = fixed._client.fetch_text

    async def fetch_text(http, path, *rest):
        return None if path in silent else await fetch(http, path, *rest)

    monkeypatch.setattr(fixed._client, "fetch_text", fetch_text)
    assert (await fixed.fetch_record()).routes == ()
    silent.clear()
    clock.advance(1.1)
    assert (await fixed.fetch_record()).routes == ("/v1/segment",)
    silent |= {"/openapi.json", "/v1/models", "/v2/repository/index"}
    clock.advance(6)
    record = await fixed.fetch_record()
    assert (record.models, record.routes) == (("pranet",), ("/v1/segment",))
    await fixed.close()


async def test_watching_ends_though_the_client_of_redis_swallows_the_cancellation(registry, monkeypatch):
    asked, swallowed = asyncio.Event(), asyncio.Event()

    async def poll():
        asked.set()
        await sleep_through_a_cancel(swallowed)

    monkeypatch.setattr(replica_registry, "POLL_INTERVAL_S", 0)
    monkeypatch.setattr(registry, "_tasks", [asyncio.create_task(replica_registry._repeat(poll))])
    await asked.wait()
    await asyncio.wait_for(registry.stop(), 10)
    assert swallowed.is_set()
