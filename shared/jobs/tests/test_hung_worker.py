"""A worker that hangs for longer than its lease and comes back: it tells its own attempts at a job apart."""

import asyncio
import threading
import time
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from fovea.api.job import Job
from fovea.errors import Fault
from shared.jobs import consumer as consumer_module
from shared.jobs.consumer import NothingToDo, QueueConsumer
from shared.jobs.queue import Payload, Result, Ticket
from shared.jobs.redis_queue import RedisJobQueue
from shared.jobs.tests.running_worker import ended, run_one, started, working
from shared.settings import Settings

Attempts = Collection[tuple[str, int]]

DONE = Result(200, "text/plain", b"done")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(consumer_module, "_BLOCK_MS", 50)


@pytest.fixture
def asked(inbox, monkeypatch):
    names: list[str] = []

    async def note(name: str, call: Any, *args: Any) -> Any:
        names.append(name)
        return await call(*args)

    for name in ("renew", "progress", "succeed", "fail", "retry", "release"):
        monkeypatch.setattr(inbox, name, partial(note, name, getattr(inbox, name)))
    return names


async def cancel_and_retry(queue: RedisJobQueue, payload: Payload) -> Job:
    """Cancel a job and try it again once it runs: see what becomes of it."""
    job, _ = await queue.submit(payload)
    await started(queue, job)
    await queue.cancel(job.id, "ann")
    await queue.retry(job.id, "ann")
    return await ended(queue, job)


class Rival:
    """Another worker's side, in a thread of its own: takes a job whose worker is silent, and holds it until told."""

    def __init__(self, redis_url: str, settings: Settings) -> None:
        self.taken, self.finish = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._work(redis_url, settings)))

    async def _work(self, redis_url: str, settings: Settings) -> None:
        inbox = QueueConsumer(redis_url, "svc", settings)
        while isinstance(delivery := await inbox.take(reclaim=True), NothingToDo):  # noqa: ASYNC110  (polls Redis)
            await asyncio.sleep(0.02)
        self.taken.set()
        while not self.finish.is_set():
            await inbox.renew([delivery.key])
            await asyncio.sleep(0.05)
        await inbox.succeed(delivery, replace(DONE, body=b"second"))
        await inbox.close()

    def take_over(self) -> None:
        """Block this thread, and with it a whole worker, until its job is the rival's."""
        self._thread.start()
        assert self.taken.wait(20)

    def end(self) -> None:
        self.finish.set()
        if self._thread.is_alive():
            self._thread.join()


@pytest.fixture
def rival(redis_url, job_settings):
    rival = Rival(redis_url, job_settings)
    yield rival
    rival.end()


@pytest.mark.parametrize("outcome", [
    replace(DONE, body=b"x" * 2000), Result(422, "text/plain", b"no"), Fault("no"),
], ids=["large answer", "refusal", "fault"])  # fmt: skip
async def test_a_worker_that_hung_renews_first_and_writes_nothing_about_a_job_that_it_lost(
    redis_url, queue, inbox, asked, rival, payload, job_settings, outcome
):
    async def hangs(_payload: Payload, ticket: Ticket) -> Result:
        await asyncio.sleep(0)
        rival.take_over()
        asked.clear()
        await ticket.progress(0.9, "late")
        if isinstance(outcome, Fault):
            raise outcome
        return outcome

    async with working(redis_url, job_settings, hangs, inbox):
        job, _ = await queue.submit(payload)
        await asyncio.to_thread(rival.taken.wait, 20)
        await asyncio.sleep(2 * job_settings.job_lease_s)
    assert set(asked) == {"renew"}
    await asyncio.to_thread(rival.end)
    done = await ended(queue, job)
    assert (done.status, done.attempts, done.progress) == ("succeeded", 2, 1.0)
    assert (await queue.result(job.id, "ann")).body == b"second"


async def test_a_worker_that_hung_while_nobody_took_its_job_goes_on_with_it(redis_url, queue, payload, job_settings):
    async def hangs(_payload: Payload, ticket: Ticket) -> Result:
        if ticket.attempt == 1:
            await asyncio.sleep(2 * job_settings.job_lease_s)  # long enough that it may look for silent workers
            time.sleep(2 * job_settings.job_lease_s)  # noqa: ASYNC251  (the loop hangs)
            await asyncio.sleep(2 * job_settings.job_lease_s)
        return DONE

    async with working(redis_url, job_settings, hangs):
        done = await run_one(queue, payload)
    assert (done.status, done.attempts) == ("succeeded", 1)


async def test_an_attempt_that_ends_late_leaves_the_next_one_of_the_same_worker_its_lease(
    redis_url, queue, payload, job_settings
):
    first_ends = asyncio.Event()

    async def handler(_payload: Payload, ticket: Ticket) -> Result:
        if ticket.attempt == 1:
            await first_ends.wait()
        if ticket.attempt == 2:
            first_ends.set()
            await asyncio.sleep(4 * job_settings.job_lease_s)
        return replace(DONE, body=f"{ticket.attempt}".encode())

    async with working(redis_url, job_settings, handler):
        done = await cancel_and_retry(queue, payload)
    assert (done.status, done.attempts, (await queue.result(done.id, "ann")).body) == ("succeeded", 2, b"2")


async def test_a_lost_attempt_does_not_stop_the_next_one_of_the_same_worker(
    redis_url, queue, inbox, payload, job_settings, monkeypatch
):
    """The answer to a renewal is read when the job has already come back to this worker."""
    second_runs, told = asyncio.Event(), asyncio.Event()
    renew = inbox.renew

    async def renew_and_read_late(attempts: Attempts) -> Attempts:
        lost = await renew(attempts)
        if lost and not told.is_set():
            await asyncio.wait_for(second_runs.wait(), 10)
            told.set()
        return lost

    async def handler(_payload: Payload, ticket: Ticket) -> Result:
        if ticket.attempt == 1:
            await ticket.wait_until_cancelled()
        if ticket.attempt == 2:
            second_runs.set()
            await told.wait()
            await asyncio.sleep(1.5)  # longer than what stopped work is given
        return DONE

    monkeypatch.setattr(inbox, "renew", renew_and_read_late)
    async with working(redis_url, job_settings.model_copy(update={"job_lease_s": 2.0}), handler, inbox):
        done = await cancel_and_retry(queue, payload)
    assert (done.status, done.attempts) == ("succeeded", 2)


async def test_a_worker_that_takes_its_own_job_again_stops_its_older_attempt(
    redis_url, queue, inbox, payload, job_settings, monkeypatch
):
    """It hung between its renewal and its look for silent workers: Redis gives it its own job."""
    stopped: list[int] = []
    renew = inbox.renew

    async def renew_none_of_the_first(attempts: Attempts) -> Attempts:
        return await renew([attempt for attempt in attempts if attempt[1] != 1])

    async def handler(_payload: Payload, ticket: Ticket) -> Result:
        if ticket.attempt == 1:
            await ticket.wait_until_cancelled()
            stopped.append(1)
        await asyncio.sleep(3 * job_settings.job_lease_s)
        return replace(DONE, body=f"{ticket.attempt}".encode())

    monkeypatch.setattr(inbox, "renew", renew_none_of_the_first)
    async with working(redis_url, job_settings, handler, inbox):
        done = await run_one(queue, payload)
    answer = (await queue.result(done.id, "ann")).body
    assert (done.status, done.attempts, answer, stopped) == ("succeeded", 2, b"2", [1])
