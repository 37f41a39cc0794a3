"""A replica is known while it lives: announced, renewed, forgotten, and untroubled by a Redis that goes away."""

import asyncio
import json
import time

import httpx2
import pytest
import redis

from fovea.api.replica import AFFINE, EFFECTFUL, ENDLESS, RENEW_S, ReplicaRecord, replicas_key, route_fields
from shared.serving.heartbeat import Heartbeat, tell_failed_start
from shared.serving.replica import load_app
from shared.serving.tests import toys
from shared.serving.tests.toys import TOYS
from shared.serving.up.startup_progress import ServiceProgress, StartupProgress
from shared.settings import Settings
from tests.harness.serving import serve_in_thread
from tests.harness.waiting import until


@pytest.fixture
def link(redis_url):
    with redis.Redis.from_url(redis_url) as made:
        yield made


def records(link, service="toy"):
    return [ReplicaRecord.model_validate_json(value) for value in link.hvals(replicas_key(service))]


@pytest.fixture
def serving(start_replica):
    return lambda url, servables=TOYS, **more: start_replica(servables, must_load=False, redis_url=url, **more)


async def test_record_says_where_what_and_whether_it_is_ready(serving, redis_url, link):
    replica = await serving(redis_url)
    await until(lambda: records(link) and records(link)[0].ready)
    (record,) = records(link)
    assert (record.id, record.service, record.http, record.grpc) == (replica.id, "toy", replica.http, replica.grpc)
    assert (record.models, record.routes) == (tuple(TOYS), ("/v1/echo", "/v1/plan", "/v1/probe", "/v1/segment"))
    assert (record.effectful, record.endless) == ((), ())
    assert abs(time.time() - record.seen) < RENEW_S + 1
    async with httpx2.AsyncClient() as client:
        assert (await client.get(f"{record.http}/readyz")).status_code == 200
    await replica.stop()
    assert records(link) == []


@pytest.mark.parametrize(("told", "written"), [("10.1.2.3", "10.1.2.3"), ("fd00::7", "[fd00::7]")])
async def test_record_names_the_address_under_which_the_replica_is_reached(serving, redis_url, link, told, written):
    await serving(redis_url, replica_advertised_host=told)
    await until(lambda: records(link))
    (record,) = records(link)
    assert record.http.startswith(f"http://{written}:")
    assert record.grpc.startswith(f"{written}:")


@pytest.mark.parametrize(
    ("servables", "ready"),
    [({"toy/broken": toys.Broken, "toy/echo": toys.Echo}, True), ({"toy/broken": toys.Broken}, False), ({}, True)],
)
async def test_replica_is_ready_to_be_routed_to_unless_every_model_failed(serving, redis_url, servables, ready):
    replica = await serving(redis_url, servables)
    await until(lambda: "loading" not in replica.host.missing().values())
    assert replica.record().ready is ready


async def test_replica_outlives_its_redis_and_is_announced_again(serving, own_redis):
    replica = await serving(own_redis.url)
    with redis.Redis.from_url(own_redis.url) as link:
        await until(lambda: records(link))
        own_redis.kill()
        async with httpx2.AsyncClient(base_url=replica.http) as client:
            assert (await client.post("/v1/echo", json={})).status_code == 200
        await asyncio.to_thread(own_redis.start)
        begun = time.time()
        await until(lambda: any(record.seen > begun for record in records(link)), 10)


async def test_records_that_nobody_renewed_for_long_are_swept(redis_url, link):
    def record(name, seen):
        return ReplicaRecord(id=name, service="toy", http="http://x", pid=1, ready=True, models=(), seen=seen)

    key = replicas_key("toy")
    link.hset(key, "old", record("old", time.time() - 3600).model_dump_json())
    link.hset(key, "silent", record("silent", time.time() - 10).model_dump_json())
    link.hset(key, "broken", "{")
    presence = Heartbeat(redis_url, lambda: record("new", time.time()))
    presence.start()
    await until(lambda: link.hexists(key, "new"))
    assert sorted(name.decode() for name in link.hkeys(key)) == ["new", "silent"]
    await presence.stop()
    assert [name.decode() for name in link.hkeys(key)] == ["silent"]


def test_service_without_an_app_of_its_own_gets_a_plain_one():
    assert load_app("detection").state.host.service == "detection"
    assert load_app("any", "shared.serving.tests.toy_app:app").state.host.names() == list(TOYS)


class Gateway:
    def __init__(self):
        self.known = {}
        self.asked = 0

    async def __call__(self, scope, receive, send):
        self.asked += 1
        body = json.dumps({"services": {name: {"ready": 1} for name in self.known}}).encode()
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture
def gateway():
    app = Gateway()
    with serve_in_thread(app, lifespan="off") as url:
        yield app, url


async def follow(redis_url, url):
    return [news async for news in StartupProgress(["toy"], redis_url, url).news()]


async def test_start_is_followed_until_all_is_ready_and_routed_to(serving, redis_url, link, gateway):
    app, url = gateway
    following = asyncio.create_task(follow(redis_url, url))
    await serving(redis_url)
    await until(lambda: app.asked >= 2)  # the replica is ready, and the gateway does not route to it yet
    assert not following.done()
    app.known["toy"] = True
    stages = [ServiceProgress("toy", stage, tuple(TOYS)) for stage in ("placed", "ready")]
    assert await asyncio.wait_for(following, 5) == stages


async def test_a_start_is_followed_without_the_proxy_of_the_environment(serving, redis_url, gateway, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    app, url = gateway
    app.known["toy"] = True
    await serving(redis_url)
    assert (await asyncio.wait_for(follow(redis_url, url), 10))[-1].stage == "ready"


async def test_service_with_a_failed_model_is_as_ready_as_it_gets(serving, redis_url, gateway):
    app, url = gateway
    app.known["toy"] = True
    await serving(redis_url, {"toy/broken": toys.Broken, "toy/echo": toys.Echo})
    *_, last = await asyncio.wait_for(follow(redis_url, url), 5)
    assert (last.stage, last.models, list(last.reasons)) == ("incomplete", ("toy/echo",), ["toy/broken"])


async def test_service_that_cannot_start_says_why(redis_url, link, gateway):
    following = asyncio.create_task(follow(redis_url, gateway[1]))
    await asyncio.sleep(0)
    for error in (ValueError("password=s3cret"), SyntaxError("invalid syntax (net.py, line 3)")):
        with pytest.raises(type(error)), tell_failed_start("toy", Settings(redis_url=redis_url)):
            raise error
    (record,) = records(link)
    told = "It can't start: SyntaxError: invalid syntax (net.py, line 3)"
    assert (record.http, record.ready, record.trouble) == ("", False, told)
    assert "s3cret" not in record.trouble
    assert await asyncio.wait_for(following, 5) == [ServiceProgress("toy", "incomplete", reasons={"service": told})]


def test_marks_are_read_from_any_operation_of_a_path_and_bad_documents_have_none():
    document = {
        "paths": {
            "/v1/a": {"get": {}, "post": {**EFFECTFUL}}, "/v1/b": {"post": {**ENDLESS}},
            "/v1/c": {"post": {"x-fovea-endless": "yes"}}, "/v1/d": None, "/v1/e": {"post": {**AFFINE}},
            "/livez": {"get": {**EFFECTFUL}},
        }
    }  # fmt: skip
    fields = route_fields(document, lambda path: path.startswith("/v1"))
    assert fields == {
        "routes": ("/v1/a", "/v1/b", "/v1/c", "/v1/d", "/v1/e"),
        "effectful": ("/v1/a",),
        "endless": ("/v1/b",),
        "affine": ("/v1/e",),
    }
    for bad in ({}, {"paths": []}, {"paths": None}):
        assert set(route_fields(bad, lambda _: True).values()) == {()}


@pytest.mark.parametrize(
    ("service", "effectful", "endless"),
    [
        ("detection", set(), {"/v1/detect/stream"}),
        (
            "llm-longctx",
            {
                "/v1/documents", "/v1/sessions", "/v1/sessions/{session_id}/fork",
                "/v1/sessions/{session_id}/import", "/v1/sessions/{session_id}/rollback", "/v1/steering-vectors",
                "/v1/lora-adapters", "/v1/load_lora_adapter", "/v1/unload_lora_adapter",
            },
            set(),
        ),
    ],
)  # fmt: skip
def test_services_mark_their_own_routes(service, effectful, endless):
    fields = route_fields(load_app(service).openapi(), lambda path: path.startswith("/v1/"))
    assert (set(fields["effectful"]), set(fields["endless"])) == (effectful, endless)
