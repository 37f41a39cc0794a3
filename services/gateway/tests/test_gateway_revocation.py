"""Keys that are revoked: what is under way with them ends, what they queued does not run, in every gateway."""

import asyncio
import errno
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import grpc
import httpx2
import pytest
from typer.testing import CliRunner

from fovea.api.job import Job
from fovea.errors import Conflict, RateLimited, Unauthenticated
from services.gateway.policy import auth, revocation
from services.gateway.policy.key_file import read_keys
from services.gateway.policy.keys_cli import keys
from services.gateway.tests.grpc_front import ANSWER, call, exchange, open_stream, refused
from shared.jobs.key_limits import JobKeyLimits, describe_key
from shared.settings import settings


async def until_refused(scene: Any, key: str) -> None:
    for _ in range(500):
        if (await scene.client.post("/v1/echo", headers={"x-api-key": key})).status_code == 401:
            return
        await asyncio.sleep(0.01)
    pytest.fail("the key goes on working")


def refuse(*_: Any, **__: Any) -> None:
    raise OSError(errno.EROFS, "Read-only file system")


async def test_an_open_stream_ends_when_its_key_is_revoked(served, ring):
    (key, text), (_, other) = ring.add("alice", ("infer",)), ring.add("bob", ("infer",))
    scene = await served(auth="keys", fields={"chunks": 10**6, "gap_s": 0.01})
    async with asyncio.TaskGroup() as tasks:

        async def read(credential: str, begun: asyncio.Event, enough: asyncio.Event) -> str:
            seen = ""
            async with scene.client.stream("POST", "/v1/stream", headers={"x-api-key": credential}) as answer:
                async for line in answer.aiter_lines():
                    seen = line or seen
                    begun.set()
                    if enough.is_set():
                        break
            return seen

        begun, done = (asyncio.Event(), asyncio.Event()), asyncio.Event()
        revoked = tasks.create_task(read(text, begun[0], asyncio.Event()))
        going = tasks.create_task(read(other, begun[1], done))
        await asyncio.gather(*(each.wait() for each in begun))
        ring.revoke(key.id)
        last = await asyncio.wait_for(revoked, 10)
        assert "The API key was revoked." in last, "the stream ends with an event that says why"
        assert not going.done(), "another key's goes on"
        done.set()


class EndlessJob:
    """A queue with one job that never ends."""

    async def get(self, job_id: str, _tenant: str) -> Job:
        return Job(id=job_id, service="svc", path="/", status="running", created=datetime.now(UTC))

    async def events(self, job_id: str, tenant: str) -> AsyncIterator[Job]:
        yield await self.get(job_id, tenant)
        await asyncio.Event().wait()


async def test_a_stream_of_a_jobs_events_ends_when_its_key_expires(gateway, ring):
    key, text = ring.add("alice", ("infer", "jobs"))
    scene = await gateway(EndlessJob(), auth="keys")
    async with scene.client.stream("GET", "/v1/jobs/endless/events", headers={"x-api-key": text}) as answer:
        assert answer.status_code == 200
        lines = answer.aiter_lines()
        assert (await anext(lines)).startswith("data: ")
        ring.update(key.id, {"expires": "2020-01-01T00:00:00Z"})
        with pytest.raises(httpx2.RemoteProtocolError):
            async with asyncio.timeout(10):
                [line async for line in lines]


async def test_a_stream_of_grpc_ends_when_its_key_is_revoked(fronted, ring):
    key, text = ring.add("alice", ("infer",))
    _, channel = await fronted(auth="keys")
    stream = open_stream(channel, text)
    assert await exchange(stream) == ANSWER
    ring.revoke(key.id)
    assert (await refused(asyncio.wait_for(stream.read(), 10))).code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_key_is_revoked_in_redis_where_its_file_can_not_be_written(served, ring, redis_url, monkeypatch):
    (_, admin), (key, text) = ring.add("ops", ("admin", "infer")), ring.add("alice", ("infer",))
    monkeypatch.setattr(revocation, "CHECK_INTERVAL_S", 0.01)
    one, two = [await served(auth="keys", redis_url=redis_url) for _ in range(2)]
    monkeypatch.setattr("services.gateway.policy.key_file.replace_reserved", refuse)
    gone = await one.client.delete(f"/v1/admin/keys/{key.id}", headers={"x-api-key": admin})
    assert (gone.status_code, gone.json()["id"]) == (200, key.id)
    assert key in read_keys(ring._path)
    for scene in (one, two):
        await until_refused(scene, text)
        assert (await scene.client.post("/v1/echo", headers={"x-api-key": admin})).status_code == 200


async def test_without_redis_a_gateway_says_that_it_alone_refuses_the_key(served, ring, monkeypatch):
    (_, admin), (key, text) = ring.add("ops", ("admin", "infer")), ring.add("alice", ("infer",))
    scene = await served(auth="keys")
    assert (await scene.client.post("/v1/echo", headers={"x-api-key": text})).status_code == 200
    ring._path.write_text("{")
    told = await scene.client.delete(f"/v1/admin/keys/{key.id}", headers={"x-api-key": admin})
    assert told.status_code == 409
    assert "until it restarts" in told.json()["detail"]
    assert (await scene.client.post("/v1/echo", headers={"x-api-key": text})).status_code == 401
    assert (await scene.client.post("/v1/echo", headers={"x-api-key": admin})).status_code == 200


async def test_the_command_revokes_in_redis_where_the_file_is_corrupt(served, ring, redis_url, monkeypatch, tmp_path):
    key, text = ring.add("alice", ("infer",))
    monkeypatch.setattr(revocation, "CHECK_INTERVAL_S", 0.01)
    scene = await served(auth="keys", redis_url=redis_url)
    assert (await scene.client.post("/v1/echo", headers={"x-api-key": text})).status_code == 200
    ring._path.write_text("{")
    monkeypatch.setenv("FOVEA_DATA_DIR", str(tmp_path))
    settings.cache_clear()
    assert isinstance(CliRunner().invoke(keys, ["revoke", key.id]).exception, Conflict)
    monkeypatch.setenv("FOVEA_REDIS_URL", redis_url)
    settings.cache_clear()
    assert CliRunner().invoke(keys, ["revoke", key.id]).exit_code == 0
    settings.cache_clear()
    await until_refused(scene, text)


async def test_a_job_of_a_revoked_key_does_not_run(redis_url, ring):
    limits = JobKeyLimits(redis_url)
    watch = revocation.Revocations(ring, redis_url)
    await limits.require_usable(describe_key("0123abcd", None, None))
    assert await watch.publish("0123abcd")
    with pytest.raises(Unauthenticated, match="revoked"):
        await limits.require_usable(describe_key("0123abcd", None, None))
    await limits.require_usable(describe_key("ffffffff", None, None))
    await limits.require_usable({})
    await limits.stop()
    await watch.stop()


async def test_wrong_keys_are_throttled_and_good_ones_are_not(served, ring, monkeypatch):
    monkeypatch.setattr(auth, "MAX_PER_MINUTE", 3)
    _, text = ring.add("alice", ("infer",))
    scene = await served(auth="keys")

    async def send(key: str | None) -> Any:
        return await scene.client.post("/v1/echo", headers={} if key is None else {"x-api-key": key})

    assert [(await send(f"fovea_{n:08x}_x")).status_code for n in range(5)] == [401, 401, 401, 429, 429]
    refused = await send("fovea_wrong")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert (await send(text)).status_code == 200
    assert (await send(None)).status_code == 401, "no key is no guess"


async def test_wrong_keys_over_grpc_are_throttled(front, ring, monkeypatch):
    monkeypatch.setattr(auth, "MAX_PER_MINUTE", 1)
    _, channel = await front(auth="keys")
    wrong = (("x-api-key", "wrong"),)
    codes = [(await refused(call(channel, "ServerMetadata", metadata=wrong))).code().name for _ in range(3)]
    assert codes == ["UNAUTHENTICATED", "RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED"]


def test_addresses_of_wrong_keys_are_forgotten(clock):
    clock.govern(auth)
    seen = auth.BadKeys()
    for _ in range(auth.MAX_PER_MINUTE):
        seen.note("a")
    with pytest.raises(RateLimited):
        seen.note("a")
    for number in range(auth._MAX_ADDRESSES + 5):
        seen.note(f"b{number}")
    assert len(seen._seen) <= auth._MAX_ADDRESSES
    clock.advance(61)
    seen.note("a")
