"""Deliveries: who has a job, and who may still write about it; more of that is in test_job_machine."""

import asyncio
import os
import socket
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from fovea.errors import Fault
from shared.jobs import codec, consumer, redis_keys
from shared.jobs import queue as job_queue
from shared.jobs.consumer import Delivery, NothingToDo, QueueConsumer
from shared.jobs.queue import Result
from shared.jobs.tests.running_worker import take
from shared.jobs.tests.test_job_queue import Script
from shared.settings import Settings

DONE = Result(200, "text/plain", b"first")


@pytest.fixture
async def other(redis_url, job_settings):
    inbox = QueueConsumer(redis_url, "svc", job_settings)
    yield inbox
    await inbox.close()


async def lease_over(settings: Settings) -> None:
    await asyncio.sleep(settings.job_lease_s + 0.05)


async def test_a_job_goes_to_one_worker(queue, inbox, other, payload):
    for _ in range(20):
        await queue.submit(payload)
    found = await asyncio.gather(*(side.take(reclaim=True) for side in (inbox, other) * 15))
    ids = [delivery.id for delivery in found if isinstance(delivery, Delivery)]
    assert (len(ids) == len(set(ids)) == 20, await queue.counts("svc")) == (True, (0, 20))


async def test_a_renewed_lease_holds_and_a_silent_worker_loses_its_job(queue, inbox, other, payload, job_settings):
    job, _ = await queue.submit(payload)
    delivery = await take(inbox)
    for _ in range(3):
        await asyncio.sleep(job_settings.job_lease_s / 2)
        assert await inbox.renew([delivery.key]) == set()
        assert isinstance(await other.take(reclaim=True), NothingToDo)
    await lease_over(job_settings)
    assert isinstance(await other.take(reclaim=False), NothingToDo), "not by a worker that may not judge silence"
    second = await take(other, reclaim=True)
    assert (second.id, second.attempt, second.tries, (await queue.get(job.id, "ann")).attempts) == (job.id, 2, 2, 2)


async def test_the_large_answer_of_a_zombie_is_removed(queue, inbox, other, payload, job_settings):
    job, _ = await queue.submit(payload)
    zombie = await take(inbox)
    await lease_over(job_settings)
    await other.succeed(await take(other, reclaim=True), replace(DONE, body=b"n" * 2000))
    assert not await inbox.succeed(zombie, replace(DONE, body=b"z" * 2000))
    assert [path.name for path in (job_settings.data_dir / "blobs" / job.id).iterdir()] == ["answer-2"]
    assert (await queue.result(job.id, "ann")).body == b"n" * 2000


async def test_a_job_that_kills_its_workers_becomes_a_dead_letter(queue, inbox, payload, job_settings):
    job, _ = await queue.submit(payload)
    for attempt in (1, 2, 3):
        assert (await take(inbox, reclaim=True)).attempt == attempt
        await lease_over(job_settings)
    assert isinstance(await inbox.take(reclaim=True), NothingToDo)
    dead = await queue.get(job.id, "ann")
    assert (dead.status, dead.dead, dead.attempts, "died" in dead.error["detail"]) == ("failed", True, 3, True)
    assert (await queue.result(job.id, "ann")).status == 500


@pytest.mark.timed("A doorbell that rings late differs from one that rings in time by the time alone.")
async def test_the_doorbell_misses_no_job_and_a_failed_attempt_waits_out_its_delay(queue, inbox, payload, monkeypatch):
    monkeypatch.setattr(consumer, "_BLOCK_MS", 4500)  # less than the timeout of Redis's socket
    quiet = await inbox.take(reclaim=True)
    assert isinstance(quiet, NothingToDo)
    job, _ = await queue.submit(replace(payload, priority=-1))
    begun = time.monotonic()
    await inbox.wait(quiet)
    assert time.monotonic() - begun < 3, "the job came between take and wait"
    await inbox.retry(await take(inbox), Fault("x"), 0.2)
    waiting = await queue.get(job.id, "ann")
    assert (waiting.status, waiting.position, waiting.error) == ("queued", 0, None)
    quiet = await inbox.take(reclaim=True)
    assert (isinstance(quiet, NothingToDo), 0 < quiet.due_ms <= 200) == (True, True)
    begun = time.monotonic()
    await inbox.wait(quiet)
    assert time.monotonic() - begun < 3, "the doorbell rings when the delay is over"
    delivery = await take(inbox)
    assert delivery.attempt == 2
    await inbox.retry(delivery, Fault("x"), 60)
    await queue.cancel(job.id, "ann")
    assert await queue._redis.client.zcard(redis_keys.key("delayed", "svc")) == 0, "it does not come back"


async def test_workers_are_known_while_they_renew(queue, inbox, payload, monkeypatch):
    assert await queue.workers("svc") == []
    job, _ = await queue.submit(payload)
    await inbox.renew([(await take(inbox)).key])
    (worker,) = await queue.workers("svc")
    assert (worker.id, worker.pid, worker.running) == (inbox.consumer, os.getpid(), (job.id,))
    monkeypatch.setattr(job_queue, "SILENT_S", 0.0)
    assert await queue.workers("svc") == []


async def test_leaving_keeps_what_is_still_held(queue, inbox, other, payload, job_settings):
    job, _ = await queue.submit(payload)
    await take(inbox)
    await inbox.renew([(job.id, 1)])
    await inbox.leave()
    assert await queue.workers("svc") == []
    await lease_over(job_settings)
    assert (await take(other, reclaim=True)).id == job.id


async def test_the_sweep_removes_orphans_and_workers_long_gone(queue, inbox, other, payload, job_settings):
    kept, _ = await queue.submit(replace(payload, body=b"x" * 2000))
    blobs = job_settings.data_dir / "blobs"
    for name, age in (("0" * 32, 10**6), ("1" * 32, 0), (kept.id, 10**6)):
        (blobs / name).mkdir(exist_ok=True)
        (blobs / name / "request").write_bytes(b"x" * 2000)
        os.utime(blobs / name / "request", (time.time() - age,) * 2)
    await other.renew([])
    client, workers = queue._redis.client, redis_keys.key("workers", "svc")
    known = job_queue.Worker.model_validate_json(await client.hget(workers, other.consumer))
    old = known.model_copy(update={"seen": time.time() - 2 * consumer._FORGET_S})
    await client.hset(workers, other.consumer, old.model_dump_json())
    await inbox.sweep_orphans()
    assert {path.name for path in blobs.iterdir()} == {"1" * 32, kept.id}
    assert not await client.hexists(workers, other.consumer)


async def test_a_late_answer_of_an_attempt_that_was_handed_back_leaves_the_request_to_the_next_and_two_are_one(
    queue, inbox, payload
):
    large = replace(payload, body=b"x" * 2000)
    job, _ = await queue.submit(large)
    delivery = await take(inbox)
    await inbox.release(delivery)
    assert not await inbox.succeed(delivery, Result(200, "text/plain", b"y" * 2000))
    delivery = await take(inbox)
    assert ((await inbox.payload(delivery)).body, await queue._payloads.older_than(-60)) == (large.body, [job.id])
    assert await inbox.succeed(delivery, DONE)
    first = await queue.get(job.id, "ann")
    assert await inbox.succeed(delivery, DONE), "the answer to the first write may have been lost with the connection"
    assert await queue.get(job.id, "ann") == first


async def test_what_is_asked_of_redis_names_worker_attempt_and_limits(job_settings):
    inbox = QueueConsumer("redis://127.0.0.1:1", "svc", job_settings)
    host, pid, number = inbox.consumer.rsplit("-", 2)
    assert (host, int(pid), len(number)) == (socket.gethostname(), os.getpid(), 8)
    assert (inbox.stops._redis, inbox.stops._channel) == (inbox._redis, redis_keys.key("stop", "svc"))
    nothing = [b"none", b"-1", [b"0-0", b"1-0", b"2-0", b"3-0"]]
    inbox._redis = script = Script(nothing, nothing, None, b"ok", b"lost", b"ok", None, None)
    found = [await inbox.take(reclaim=reclaim) for reclaim in (False, True)]
    assert found == [NothingToDo(("0-0", "1-0", "2-0", "3-0"), -1)] * 2
    one = Delivery("a" * 32, 4, 1, "svc", "/v1/x", "ann", {}, 5, b"")
    await inbox.progress(one, 0.123456, None)
    assert await inbox.retry(one, Fault("no"), 1.5) is True
    assert await inbox.fail(one, Result(500, "text/plain", b"no")) is False
    assert await inbox.fail(one, Fault("no")) is True
    await inbox.release(one)
    await inbox.leave()
    who, limits = ("svc", inbox.consumer), (job_settings.job_max_attempts, job_settings.job_dead_letter_max)
    problem, answer = codec.encode_problem(Fault("no")), Result(500, "text/plain", b"no")
    ttl_ms = job_settings.job_ttl_s * 1000
    assert script.calls == [
        ("take", *who, "", *limits, *codec.REQUEST_FIELDS), ("take", *who, "400", *limits, *codec.REQUEST_FIELDS),
        ("progress", *one.key, "0.1235", ""), ("again", *one.key, *limits, 1500, problem),
        ("fail", *one.key, ttl_ms, 2, codec.encode_problem(answer), *codec.encode_answer(answer), "answer", b"no"),
        ("fail", *one.key, ttl_ms, 0, problem), ("release", *one.key), ("leave", *who),
    ]  # fmt: skip


@pytest.mark.parametrize(("due_ms", "block_ms"), [(-1, 1000), (0, 1), (1, 1), (250, 250), (5000, 1000)])
async def test_a_worker_sleeps_until_the_next_delayed_job_is_due(job_settings, due_ms, block_ms):
    inbox, asked = QueueConsumer("redis://127.0.0.1:1", "svc", job_settings), []

    async def xread(streams: dict[str, str], **how: int) -> None:
        asked.append((streams, how))

    inbox._redis = SimpleNamespace(client=SimpleNamespace(xread=xread))
    await inbox.wait(NothingToDo(("0-0", "1-0", "2-0", "3-0"), due_ms))
    ((streams, how),) = asked
    assert (how, list(streams.values())) == ({"count": 1, "block": block_ms}, ["0-0", "1-0", "2-0", "3-0"])
    assert list(streams) == [redis_keys.key("stream", f"svc:{level}") for level in redis_keys.LEVELS]
