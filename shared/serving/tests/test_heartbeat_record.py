"""A replica is known while it lives, also while Redis is away, withdraws before it stops, and starts when wanted."""

import asyncio
import importlib
import subprocess
import sys
import time
from types import SimpleNamespace
from unittest.mock import Mock

import httpx2
import pytest
import redis
from starlette.responses import JSONResponse

from fovea.api.replica import AFFINE, EFFECTFUL, ENDLESS, RENEW_S, ReplicaRecord, replicas_key, route_fields, wanted_key
from shared.serving import wanted
from shared.serving.build_app import build
from shared.serving.drain import DrainFiles, drain
from shared.serving.heartbeat import Heartbeat, tell_failed_start
from shared.serving.replica import ReplicaServer, load_app
from shared.serving.tests import toys
from shared.serving.tests.toys import TOYS
from shared.serving.up.startup_progress import ServiceProgress, StartupProgress
from shared.settings import Settings, environment, settings
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
    assert (record.effectful, record.endless, abs(time.time() - record.seen) < RENEW_S + 1) == ((), (), True)
    async with httpx2.AsyncClient() as client:
        assert (await client.get(f"{record.http}/readyz")).status_code == 200
    await replica.stop()
    assert records(link) == []


async def test_record_names_the_address_under_which_the_replica_is_reached(serving, redis_url):
    for told, written in (("10.1.2.3", "10.1.2.3"), ("fd00::7", "[fd00::7]")):
        record = (await serving(redis_url, {}, replica_advertised_host=told)).record()
        assert (record.http.startswith(f"http://{written}:"), record.grpc.startswith(f"{written}:")) == (True, True)


async def test_replica_is_ready_to_be_routed_to_unless_every_model_failed(serving, redis_url):
    for servables, ready in (({"toy/broken": toys.Broken}, False), ({}, True)):
        replica = await serving(redis_url, servables)
        await until(lambda replica=replica: "loading" not in replica.host.missing().values())
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
        self.known, self.asked = set(), 0

    async def __call__(self, scope, receive, send):
        self.asked += 1
        await JSONResponse({"services": {name: {"ready": 1} for name in self.known}}, 503)(scope, receive, send)


@pytest.fixture
def gateway():
    app = Gateway()
    with serve_in_thread(app, lifespan="off") as url:
        yield app, url


async def follow(redis_url, url):
    return [news async for news in StartupProgress(["toy"], redis_url, url).news()]


async def test_start_is_followed_until_all_is_ready_and_routed_to_without_the_proxy_of_the_environment(
    serving, redis_url, gateway, monkeypatch
):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    app, url = gateway
    following = asyncio.create_task(follow(redis_url, url))
    await serving(redis_url)
    await until(lambda: app.asked >= 2)  # the replica is ready, and the gateway does not route to it yet
    assert not following.done()
    app.known.add("toy")
    stages = [ServiceProgress("toy", stage, tuple(TOYS)) for stage in ("placed", "ready")]
    assert await asyncio.wait_for(following, 5) == stages


async def test_service_with_a_failed_model_is_as_ready_as_it_gets(serving, redis_url, gateway):
    app, url = gateway
    app.known.add("toy")
    replica = await serving(redis_url, {"toy/broken": toys.Broken, "toy/echo": toys.Echo})
    *_, last = await asyncio.wait_for(follow(redis_url, url), 5)
    assert (last.stage, last.models, list(last.reasons)) == ("incomplete", ("toy/echo",), ["toy/broken"])
    assert replica.record().ready


async def test_service_that_cannot_start_says_why(redis_url, link, gateway):
    following = asyncio.create_task(follow(redis_url, gateway[1]))
    await asyncio.sleep(0)
    for error in (ValueError("password=s3cret"), SyntaxError("invalid syntax (net.py, line 3)")):
        with pytest.raises(type(error)), tell_failed_start("toy", Settings(redis_url=redis_url)):
            raise error
    (record,) = records(link)
    told = "It can't start: SyntaxError: invalid syntax (net.py, line 3)"
    assert (record.http, record.ready, record.trouble) == ("", False, told)
    assert await asyncio.wait_for(following, 5) == [ServiceProgress("toy", "incomplete", reasons={"service": told})]


def test_marks_are_read_from_any_operation_of_a_path_and_bad_documents_have_none():
    post = {"a": EFFECTFUL, "b": ENDLESS, "c": {"x-fovea-endless": "yes"}, "e": AFFINE}
    paths = {f"/v1/{name}": {"get": {}, "post": marks} for name, marks in post.items()}
    paths |= {"/v1/d": None, "/livez": {"get": EFFECTFUL}}
    fields = route_fields({"paths": paths}, lambda path: path.startswith("/v1"))
    assert sorted(fields.pop("routes")) == ["/v1/a", "/v1/b", "/v1/c", "/v1/d", "/v1/e"]
    assert fields == {"effectful": ("/v1/a",), "endless": ("/v1/b",), "affine": ("/v1/e",)}
    for bad in ({}, {"paths": []}, {"paths": None}):
        assert set(route_fields(bad, lambda _: True).values()) == {()}


@pytest.mark.parametrize(("service", "effectful", "endless"), [
    ("detection", set(), {"/v1/detect/stream"}),
    ("llm-longctx", {
        "/v1/documents", "/v1/sessions", "/v1/sessions/{session_id}/fork", "/v1/sessions/{session_id}/import",
        "/v1/sessions/{session_id}/rollback", "/v1/steering-vectors", "/v1/lora-adapters", "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
    }, set()),
])  # fmt: skip
def test_services_mark_their_own_routes(service, effectful, endless):
    fields = route_fields(load_app(service).openapi(), lambda path: path.startswith("/v1/"))
    assert (set(fields["effectful"]), set(fields["endless"])) == (effectful, endless)


@pytest.fixture
async def replica(start_replica, redis_url, tmp_path):
    return await start_replica(redis_url=redis_url, data_dir=tmp_path, shutdown_grace_s=1)


def pre_stop(data_dir, grace="20"):
    env = environment(FOVEA_DATA_DIR=str(data_dir), FOVEA_SHUTDOWN_GRACE_S=grace)
    return subprocess.Popen([sys.executable, "-m", "shared.serving.drain"], env=env)


async def test_requests_in_flight_end_before_the_hook_returns_and_no_new_ones_are_sent(replica, link, tmp_path):
    await until(lambda: records(link), 60)
    client = httpx2.AsyncClient(base_url=replica.http, timeout=30)
    how = {"json": {"text": "…"}, "headers": {"accept": "text/event-stream"}}
    async with client, client.stream("POST", "/v1/plan", **how) as endless:
        assert (endless.status_code, replica.in_flight) == (200, 1)
        hook = pre_stop(tmp_path)
        await until(lambda: not records(link), 20)
        # Sent before word got round:
        assert (await client.post("/v1/echo", json={"text": "late"})).status_code == 200
        with pytest.raises(subprocess.TimeoutExpired):
            await asyncio.to_thread(hook.wait, 0.5)
    assert (await asyncio.to_thread(hook.wait, 10), records(link)) == (0, [])
    assert list((tmp_path / "replicas").iterdir()) == []


async def test_what_comes_before_the_withdrawal_is_waited_for(redis_url, link, tmp_path):
    settings = Settings(redis_url=redis_url, data_dir=tmp_path, shutdown_grace_s=1)
    moved, asked = asyncio.Event(), asyncio.Event()

    async def move():
        asked.set()
        await moved.wait()

    made = ReplicaServer(build("toy", servables={}, settings=settings), settings, before_withdrawal=move)
    await made.start()
    await until(lambda: records(link), 60)
    hook = pre_stop(tmp_path)
    await asyncio.wait_for(asked.wait(), 20)
    assert records(link)
    moved.set()
    await until(lambda: not records(link), 60)
    assert await asyncio.to_thread(hook.wait, 10) == 0
    await made.stop()


@pytest.mark.timed("The hook gives up after seconds that the pod is given: only a clock tells that.")
def test_hook_gives_up_when_the_time_is_over(tmp_path):
    files = DrainFiles(tmp_path, "busy")
    files.create()
    began = time.monotonic()
    assert (drain(tmp_path, 0.5), 0.5 <= time.monotonic() - began < 2) == (False, True)
    assert files.is_requested()


def test_replica_that_was_killed_is_not_waited_for_nor_that_of_the_next_start_drained(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    (tmp_path / "replicas").mkdir()
    (tmp_path / "replicas" / "gone").write_text(str(ended.pid))
    assert drain(tmp_path, 5) is True
    DrainFiles(tmp_path, "first").create()
    drain(tmp_path, 0.2)
    second = DrainFiles(tmp_path, "second")
    second.create()
    assert not second.is_requested()


@pytest.fixture
def now(redis_url, monkeypatch, clock):
    clock.govern(wanted)
    monkeypatch.setenv("FOVEA_REDIS_URL", redis_url)
    settings.cache_clear()
    wanted._open.cache_clear()
    clock.advance(1)
    yield clock
    settings.cache_clear()


def test_who_waits_is_read_once_a_second_and_stays_wanted_while_redis_is_away(now, redis_url, monkeypatch):
    link = redis.Redis.from_url(redis_url)
    assert not wanted.is_wanted("svc")
    link.set(wanted_key("svc"), "1")
    assert not wanted.is_wanted("svc")
    now.advance(1.01)
    assert [wanted.is_wanted(name) for name in ("svc", "other")] == [True, False]
    away = Mock(side_effect=redis.ConnectionError("away"))
    monkeypatch.setattr(wanted._open(redis_url, "svc")._redis, "exists", away)
    now.advance(1.01)
    assert wanted.is_wanted("svc")
    link.close()


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")
@pytest.mark.parametrize(("low", "target", "busy", "is_wanted", "replicas"), [
    (0, 0, {}, False, 0), (0, 0, {}, True, 1), (0, 1, {}, False, 1), (0, 1, {"r1": 0}, False, 0),
    (0, 1, {"r1": 0}, True, 1), (0, 1, {"r1": 1}, False, 1), (0, 1, {"r1": 17}, True, 3), (1, 1, {}, True, 1),
    (1, 1, {}, False, 1), (1, 1, {"r1": 0}, False, 1), (1, 1, {"r1": 8}, False, 1), (1, 1, {"r1": 9}, False, 2),
    (1, 1, {"r1": 8, "r2": 8, "r3": 8}, False, 3), (1, 1, {"r1": 99}, False, 4),
])  # fmt: skip
def test_replicas_grow_with_requests_in_flight_and_a_service_without_has_one_while_it_is_wanted_or_starts(
    monkeypatch, low, target, busy, is_wanted, replicas
):
    ours = importlib.import_module("shared.serving.ray")
    monkeypatch.setattr(ours, "is_wanted", lambda service: is_wanted and service == "svc")
    context = SimpleNamespace(
        aggregated_metrics={"busy": busy} if busy else {}, target_num_replicas=target,
        capacity_adjusted_min_replicas=low, capacity_adjusted_max_replicas=4,
    )  # fmt: skip
    assert ours.scale(context, 8, "svc") == (replicas, {})
