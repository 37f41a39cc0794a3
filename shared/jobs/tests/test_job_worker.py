"""The worker loop against a real Redis: what becomes of a handler's answer, and what a stop or a cancel does."""

import asyncio
import threading
from dataclasses import replace
from unittest.mock import AsyncMock

import pytest

from fovea.errors import Fault, InvalidOption, NotReady, QueueFull, RateLimited
from shared.jobs import consumer as consumer_module
from shared.jobs import worker as worker_module
from shared.jobs.payloads import PayloadStore
from shared.jobs.queue import Handler, Payload, Result, Ticket
from shared.jobs.redis_queue import RedisJobQueue
from shared.jobs.tests.running_worker import ended, run_one, started, working
from shared.jobs.worker import JobWorker
from shared.storage.tests.small_disk import grow_disk, mount_small_disk

DONE = Result(200, "text/plain", b"done")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(worker_module, "_MAX_BACKOFF_S", 0.03)
    monkeypatch.setattr(consumer_module, "_BLOCK_MS", 50)


@pytest.fixture
def work(redis_url, job_settings):
    """Runs a worker with a handler until its block ends; keyword arguments are settings."""
    return lambda handler, **changed: working(redis_url, job_settings.model_copy(update=changed), handler)


async def test_a_flood_of_one_tenant_stands_in_front_of_another_with_a_few_jobs_only(queue, work):
    order: list[str] = []

    async def handler(payload: Payload, _ticket: Ticket) -> Result:
        order.append(payload.tenant)
        return DONE

    alice, bob = (Payload("svc", "/v1/x", b"", tenant=tenant) for tenant in ("alice", "bob"))
    flood = [(await queue.submit(alice))[0] for _ in range(30)]
    with pytest.raises(QueueFull):
        await queue.submit(alice)
    mine = [(await queue.submit(bob))[0] for _ in range(3)]
    async with work(handler, job_concurrency=1):
        for job in mine:
            await ended(queue, job, "bob")
        assert order.index("bob") <= 3
        assert [place for place, tenant in enumerate(order) if tenant == "bob"][-1] <= 8
        for job in flood:
            await ended(queue, job, "alice")
    assert sorted(order) == ["alice"] * 30 + ["bob"] * 3


def always(outcome: Result | BaseException) -> Handler:
    async def handler(_payload: Payload, _ticket: Ticket) -> Result:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return handler


@pytest.mark.parametrize("outcome", [InvalidOption("Too wide."), Result(422, "text/html", b"<h1>Too wide.</h1>")])
async def test_a_4xx_fails_for_good(queue, payload, outcome, work):
    async with work(always(outcome)):
        failed = await run_one(queue, payload)
        assert (failed.status, failed.attempts, failed.dead) == ("failed", 1, False)
        assert failed.expires
        assert (failed.error["status"], failed.error["code"]) == (422, "invalid_option")
        result = await queue.result(failed.id, "ann")
        assert result.status == 422
        if isinstance(outcome, Result):
            assert result.body == outcome.body, "the caller gets the bytes it would have had at once"


@pytest.mark.parametrize("outcome", [
    Fault("x"), NotReady("x"), QueueFull("x"), ValueError("ours"), asyncio.CancelledError(), Result(503, "", b""),
    Result(429, "", b"{"),
], ids=lambda outcome: type(outcome).__name__ + str(getattr(outcome, "status", "")))  # fmt: skip
async def test_other_errors_are_tried_again_and_then_buried(queue, payload, outcome, work):
    async with work(always(outcome), job_max_attempts=2):
        dead = await run_one(queue, payload)
        assert (dead.status, dead.dead, dead.attempts) == ("failed", True, 2)
        assert "ours" not in str(dead.error), "what is not written for callers is not shown to them"
        assert [letter.id for letter in await queue.dead("ann")] == [dead.id]


async def test_an_object_store_that_is_away_uses_up_no_attempt(queue, payload, work, job_settings, monkeypatch):
    fetch, away = PayloadStore.get, [NotReady("The object store can't be reached.")] * 5

    async def get(store: PayloadStore, name: str) -> bytes:
        if away:
            raise away.pop()
        return await fetch(store, name)

    monkeypatch.setattr(PayloadStore, "get", get)
    async with work(always(DONE)):
        done = await run_one(queue, replace(payload, body=b"x" * (job_settings.job_inline_max_bytes + 1)))
    assert (done.status, done.attempts, away) == ("succeeded", 1, [])


async def test_a_job_that_waits_for_its_keys_quota_uses_up_no_attempt(queue, payload, work):
    refusals = [RateLimited("20 tokens per minute are allowed, and all are used.", retry_after=0.01)] * 5

    async def handler(_payload: Payload, _ticket: Ticket) -> Result:
        if refusals:
            raise refusals.pop()
        raise Fault("x")

    async with work(handler):
        dead = await run_one(queue, payload)
    assert (dead.dead, dead.attempts) == (True, 5 + 3), "it still has all of its attempts then"


async def test_no_more_jobs_run_than_allowed(queue, payload, work):
    running, most = 0, 0

    async def busy(_payload: Payload, _ticket: Ticket) -> Result:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(100):  # long enough that the allowed ones meet, also on a busy machine
            await asyncio.sleep(0.02)
            if most == 3:
                break
        running -= 1
        return DONE

    async with work(busy, job_concurrency=3):
        jobs = [(await queue.submit(payload))[0] for _ in range(12)]
        for job in jobs:
            await ended(queue, job)
    assert most == 3


async def test_progress_is_shown_without_a_write_for_each_step(queue, payload, work):
    async def steps(_payload: Payload, ticket: Ticket) -> Result:
        for step in range(500):
            await ticket.progress(step / 500, f"step {step}")
            await asyncio.sleep(0.001)
        await ticket.progress(7.0)
        return DONE

    async with work(steps):
        job, _ = await queue.submit(payload)
        seen = [now.progress async for now in queue.events(job.id, "ann")]
    assert (seen, seen[-1]) == (sorted(seen), 1.0)
    assert 4 <= len(seen) <= 20, "several steps are seen, and far fewer are written than were told"


async def test_a_handler_that_ignores_a_cancel_is_cancelled_and_its_slot_is_free(queue, payload, work):
    release = threading.Event()

    async def deaf(given: Payload, _ticket: Ticket) -> Result:
        if given.body == b"deaf":
            await asyncio.to_thread(release.wait)
        return DONE

    try:
        async with work(deaf, job_concurrency=1):
            job, _ = await queue.submit(replace(payload, body=b"deaf"))
            await started(queue, job)
            await queue.cancel(job.id, "ann")
            assert (await run_one(queue, payload)).status == "succeeded"
    finally:
        release.set()


@pytest.mark.parametrize("polite", [True, False])
async def test_a_stopping_worker_hands_back_at_once_what_is_not(queue, payload, polite, work):
    async def long(_payload: Payload, ticket: Ticket) -> Result:
        if ticket.attempt > 1:
            return DONE
        await (ticket.wait_until_cancelled() if polite else asyncio.sleep(60))
        return Result(499, "", b"")

    patient = {"job_lease_s": 60.0, "job_max_attempts": 1}
    async with work(long, **patient) as worker:
        job, _ = await queue.submit(payload)
        await started(queue, job)
        worker.stop()  # `working` waits less than the handler or the lease take
    back = await queue.get(job.id, "ann")
    assert (back.status, back.position) == ("queued", 0)
    async with work(long, **patient):
        done = await ended(queue, job)
        assert (done.status, done.attempts) == ("succeeded", 2), "being handed back costs no attempt"


async def test_a_stopping_worker_begins_nothing_new_and_a_second_stop_does_not_wait(queue, payload, work):
    async def long(_payload: Payload, ticket: Ticket) -> Result:
        await ticket.wait_until_cancelled()
        raise asyncio.CancelledError

    async with work(long, shutdown_grace_s=60.0) as worker:
        job, _ = await queue.submit(payload)
        await started(queue, job)
        worker.stop()
        await asyncio.sleep(0.05)
        new, _ = await queue.submit(payload)
        worker.stop()
    for one, attempts in ((job, 1), (new, 0)):
        back = await queue.get(one.id, "ann")
        assert (back.status, back.attempts) == ("queued", attempts)


async def test_a_broken_loop_ends_the_worker_loudly(inbox, job_settings, monkeypatch):
    monkeypatch.setattr(inbox, "sweep", AsyncMock(side_effect=RuntimeError("bug")))
    with pytest.raises(ExceptionGroup) as group:
        await asyncio.wait_for(JobWorker(inbox, always(DONE), job_settings).run(), 5)
    assert group.group_contains(RuntimeError, match="bug")


async def test_an_answer_that_finds_no_room_waits_for_it_and_the_job_is_not_run_again(
    redis_url, queue, payload, job_settings, tmp_path, work
):
    runs: list[int] = []

    async def handler(_payload: Payload, ticket: Ticket) -> Result:
        runs.append(ticket.attempt)
        return Result(200, "text/plain", b"x" * 200_000)

    with mount_small_disk(tmp_path / "disk") as place:
        store = (place / "objects").as_uri()
        reader = RedisJobQueue(redis_url, job_settings.model_copy(update={"object_store": store}))
        async with work(handler, object_store=store):
            job, _ = await queue.submit(payload)
            await asyncio.sleep(3 * job_settings.job_lease_s)
            assert (await queue.get(job.id, "ann")).status == "running"
            await asyncio.to_thread(grow_disk, place)
            assert (await ended(queue, job)).status == "succeeded"
        assert (await reader.result(job.id, "ann")).body == b"x" * 200_000
        await reader.close()
    assert runs == [1]
