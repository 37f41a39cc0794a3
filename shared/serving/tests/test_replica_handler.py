"""Jobs sent to replicas: the same bytes as at once, progress through Redis, cancel, and replicas that are lost."""

import asyncio
import contextlib
import json
import time

import pytest

from fovea.api.replica import ReplicaRecord, replicas_key
from fovea.errors import Cancelled, NotReady, TooLarge
from shared.jobs.queue import Payload
from shared.jobs.redis_connection import open_redis
from shared.serving.jobs import replica_directory, replica_handler
from shared.serving.jobs.replica_directory import ReplicaDirectory
from shared.serving.jobs.replica_handler import ReplicaJobHandler
from shared.serving.tests.tickets import Ticket
from shared.settings import Settings
from tests.harness.scripted import scripted
from tests.harness.waiting import until


@pytest.fixture
def chosen(redis_url, tmp_path):
    return Settings(redis_url=redis_url, data_dir=tmp_path, shutdown_grace_s=0.1, replica_secret="s1")


@pytest.fixture
def start(start_replica, chosen):
    return lambda: start_replica(**chosen.model_dump(exclude_unset=True))


@pytest.fixture
async def replica(start):
    return await start()


@pytest.fixture
async def handler(chosen):
    made = ReplicaJobHandler(ReplicaDirectory(chosen.redis_url, "toy", ""), chosen)
    yield made
    await made.close()


def payload(path="/v1/echo", tenant="ann", **body):
    headers = {"content-type": "application/json", "x-fovea-tenant": tenant, "x-request-id": "r-1"}
    return Payload("toy", path, json.dumps(body).encode(), headers, tenant=tenant)


@pytest.fixture
def announce(redis_url):
    def made(http, name="a", **facts):
        known = {"id": name, "service": "toy", "http": http, "pid": 1, "ready": True, "models": ()}
        record = ReplicaRecord(**{**known, "seen": time.time(), **facts})
        with open_redis(redis_url) as redis:
            redis.hset(replicas_key("toy"), record.id, record.model_dump_json())

    return made


@contextlib.asynccontextmanager
async def server(answer):
    """A server that does with each connection what the test says; its URL, and what it was sent."""
    sent = []

    async def serve(reader, writer):
        sent.append(await reader.readuntil(b"\r\n\r\n"))
        await answer(reader, writer, len(sent))

    async with scripted(serve) as url:
        yield url, sent


async def test_a_replica_answers_as_at_once(replica, handler):
    answer = await handler(payload(text="ab", times=2), Ticket())
    assert (answer.status, answer.content_type) == (200, "application/json")
    assert (json.loads(answer.body)["text"], answer.headers["x-request-id"]) == ("abab", "r-1")
    assert json.loads(answer.headers["x-fovea-usage"]).keys() == {"cpu_seconds", "model"}
    assert not {"content-length", "date", "server", "connection"} & set(answer.headers)
    refused = await handler(payload(text="bad"), Ticket())
    assert (refused.status, json.loads(refused.body)["field"]) == (422, "text")


async def test_a_cancelled_job_hangs_up_and_so_ends_the_run(replica, handler):
    ticket = Ticket()
    running = asyncio.create_task(handler(payload("/v1/probe", sleep=600), ticket))
    await until(lambda: replica.host.busy)
    ticket.stop.set()
    with pytest.raises(Cancelled):
        await running
    await until(lambda: not replica.host.busy)


async def test_a_job_waits_for_a_replica_and_says_so(handler, start):
    ticket = Ticket()
    running = asyncio.create_task(handler(payload(text="x"), ticket))
    await until(lambda: ticket.told)
    assert ticket.told == [(0.0, "waiting for a replica")]
    await start()
    assert (await asyncio.wait_for(running, 20)).status == 200


async def test_replicas_of_another_version_that_are_not_ready_or_refuse_are_passed_over(replica, handler, announce):
    announce("http://127.0.0.1:1", "a")
    announce("http://127.0.0.1:1", "b", version="canary")
    announce("http://127.0.0.1:1", "c", ready=False)
    for _ in range(4):
        assert (await handler(payload(text="x"), Ticket())).status == 200


async def test_a_job_says_who_it_is(handler, announce):
    async def answer(_reader, writer, _count):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        await writer.drain()

    async with server(answer) as (url, sent):
        announce(url)
        found = await handler(Payload("toy", "/v1/echo?a=%C3%BC", b"x", {"x-fovea-deadline-ms": "5"}), Ticket())
    assert (found.status, found.content_type, found.body) == (200, "application/octet-stream", b"ok")
    said = sent[0].lower()
    assert said.startswith(b"post /v1/echo?a=%c3%bc http/1.1\r\n")
    for line in (b"x-fovea-job: " + b"j" * 32 + b" 1", b"x-fovea-replica-secret: s1", b"accept-encoding: identity"):
        assert line in said.split(b"\r\n")
    assert b"x-fovea-deadline-ms" not in said
    assert b"content-type" not in said


async def test_a_busy_replica_is_asked_again(handler, announce, monkeypatch):
    monkeypatch.setattr(replica_handler, "_BUSY_PAUSE_S", 0.001)
    monkeypatch.setattr(replica_handler, "_MAX_REFUSALS", 2)

    async def answer(_reader, writer, count):
        status = b"429 No" if count < 3 or count > 5 else b"200 OK"
        writer.write(b"HTTP/1.1 %b\r\ncontent-length: 0\r\n\r\n" % status)
        await writer.drain()

    async with server(answer) as (url, sent):
        announce(url)
        assert (await handler(payload(), Ticket())).status == 200
        assert len(sent) == 3
        sent.extend([b""] * 2)
        assert (await handler(payload(), Ticket())).status == 429
        assert len(sent) == 8


@pytest.mark.parametrize(
    ("facts", "error"), [({}, NotReady), ({"out_of_memory": True}, TooLarge), ({"memory": 0.95}, TooLarge)]
)
async def test_a_replica_that_breaks_off_fails_the_attempt(handler, announce, facts, error, monkeypatch):
    monkeypatch.setattr(replica_directory, "_LAST_WORD_S", 0.2)

    async def answer(_reader, _writer, _count):
        announce(url, **facts)

    async with server(answer) as (url, _):
        announce(url)
        with pytest.raises(error):
            await handler(payload(), Ticket())


async def test_a_replica_whose_record_stands_still_hangs_and_one_that_withdrew_finishes(
    handler, announce, redis_url, monkeypatch
):
    monkeypatch.setattr(replica_directory, "_SILENT_S", 0.2)
    monkeypatch.setattr(replica_directory, "RENEW_S", 0.05)
    withdraws = False

    async def answer(_reader, writer, _count):
        if withdraws:
            with open_redis(redis_url) as redis:
                redis.delete(replicas_key("toy"))
        await asyncio.sleep(0.6)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    async with server(answer) as (url, _):
        announce(url)
        with pytest.raises(NotReady, match="hangs"):
            await handler(payload(), Ticket())
        withdraws = True
        announce(url, "b")
        assert (await handler(payload(), Ticket())).status == 200


async def test_an_answer_comes_though_the_client_of_redis_swallows_a_cancel(handler, replica, monkeypatch):
    swallowed = asyncio.Event()

    async def watch(self, record):
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if swallowed.is_set():
                    raise
                swallowed.set()

    monkeypatch.setattr(ReplicaDirectory, "wait_until_silent", watch)
    async with asyncio.timeout(20):
        answer = await handler(payload(text="ab"), Ticket())
    assert answer.status == 200
    assert swallowed.is_set()
