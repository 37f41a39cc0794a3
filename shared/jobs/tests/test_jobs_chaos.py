"""`kill -9` of workers and of Redis: nothing accepted is lost, nothing counts twice, and it is quick."""

import asyncio
import collections
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from fovea.api.job import Job
from fovea.errors import NotReady
from shared.jobs.queue import Payload
from shared.jobs.redis_queue import RedisJobQueue
from shared.jobs.tests import running_worker
from shared.settings import Settings
from tests.harness.waiting import until as wait_for

REDELIVERED_S = 10.0
"""The product's promises between the death of a worker and the second attempt's end."""


@pytest.fixture(autouse=True)
def short_lease(monkeypatch):
    monkeypatch.setenv("FOVEA_JOB_LEASE_S", "1")
    return 1.0


@pytest.fixture
def ledger(tmp_path):
    path = tmp_path / "ledger"
    path.touch()
    return path


@pytest.fixture
def start_worker(own_redis, tmp_path, ledger):
    """Starts worker processes; ends them with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        program = Path(__file__).with_name("chaos_worker.py")
        command = [sys.executable, str(program), own_redis.url, str(tmp_path), str(ledger)]
        with (tmp_path / "workers.log").open("ab") as log:
            started.append(subprocess.Popen(command, stdout=log, stderr=log))
        return started[-1]

    yield start
    for child in started:
        child.kill()
        child.wait()


@pytest.fixture
async def far_queue(own_redis, tmp_path):
    queue = RedisJobQueue(own_redis.url, Settings(data_dir=tmp_path))
    yield queue
    await queue.close()


async def until(condition: Callable[[], bool]) -> None:
    await wait_for(condition, 90, "what another process does")


def work(*seconds: float, size: int = 0) -> Payload:
    """A job whose attempts take these seconds, the last ones the last of them."""
    return Payload("svc", "/", ",".join(map(str, seconds)).encode() + b" " + b"x" * size)


def lines(ledger: Path, what: str) -> list[str]:
    rows = [line.split() for line in ledger.read_text().splitlines()]
    return [row[0] for row in rows if row[3] == what]


ended = partial(running_worker.ended, tenant="local")


async def begun(ledger: Path, *jobs: Job) -> None:
    await until(lambda: {job.id for job in jobs} <= set(lines(ledger, "begin")))


async def begin_one(queue, ledger, workers, *seconds: float):
    job, _ = await queue.submit(work(*seconds))
    await begun(ledger, job)
    (_, _, pid, _), *_ = (line.split() for line in ledger.read_text().splitlines() if line.endswith("begin"))
    return job, next(child for child in workers if child.pid == int(pid))


@pytest.mark.timed("The product promises the second attempt within ten seconds, under its own settings.")
async def test_the_job_of_a_killed_worker_is_done_by_an_idle_one_within_ten_seconds(
    far_queue, start_worker, ledger, monkeypatch
):
    monkeypatch.delenv("FOVEA_JOB_LEASE_S")
    job, victim = await begin_one(far_queue, ledger, [start_worker(), start_worker()], 60, 0.1)
    victim.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    done = await ended(far_queue, job)
    assert (done.status, done.attempts, time.monotonic() - killed < REDELIVERED_S) == ("succeeded", 2, True)


@pytest.mark.timed("After the outage a worker has one lease, a second, to renew before another one may take its job.")
async def test_accepted_jobs_survive_an_outage_longer_than_the_lease_and_run_once(
    far_queue, own_redis, start_worker, ledger, short_lease
):
    start_worker(), start_worker()
    running = [(await far_queue.submit(work(3.0)))[0] for _ in range(2)]
    waiting = [(await far_queue.submit(work(0.05, size=size)))[0] for size in (0, 2_000_000) * 10]
    await begun(ledger, *running)
    own_redis.kill()
    await asyncio.sleep(1.2 * short_lease)
    with pytest.raises(NotReady):
        await far_queue.get(running[0].id, "local")
    own_redis.start()
    for job in (*running, *waiting):
        done = await ended(far_queue, job)
        assert (done.status, done.attempts) == ("succeeded", 1), "an outage is not a reason to start over"
        assert (await far_queue.result(job.id, "local")).body == b"1"
    assert collections.Counter(lines(ledger, "end")) == {job.id: 1 for job in (*running, *waiting)}


async def test_a_long_job_of_a_worker_that_a_scaler_stops_is_begun_once(far_queue, start_worker, ledger, monkeypatch):
    monkeypatch.setenv("FOVEA_SHUTDOWN_GRACE_S", "30")
    monkeypatch.setenv("FOVEA_JOB_LEASE_S", "0.5")
    job, leaving = await begin_one(far_queue, ledger, [start_worker(), start_worker()], 2.0)
    leaving.send_signal(signal.SIGTERM)
    done = await ended(far_queue, job)
    assert (done.status, done.attempts) == ("succeeded", 1)
    assert lines(ledger, "begin") == lines(ledger, "end") == [job.id]
    assert await asyncio.to_thread(leaving.wait, 60) == 0


@pytest.mark.timed("The next renewal, up to a second later, would stop it as well.")
async def test_a_cancel_reaches_another_process_within_a_second(far_queue, start_worker, ledger, monkeypatch):
    monkeypatch.delenv("FOVEA_JOB_LEASE_S")
    start_worker()
    job, _ = await far_queue.submit(work(60))
    await begun(ledger, job)
    asked = time.monotonic()
    await far_queue.cancel(job.id, "local")
    await until(lambda: lines(ledger, "stop") == [job.id])
    assert time.monotonic() - asked < 1.0


async def test_what_was_accepted_while_redis_dies_again_and_again_is_done(far_queue, own_redis, start_worker, ledger):
    start_worker()
    accepted: dict[str, Job] = {}

    async def submit(n: int) -> None:
        async with asyncio.timeout(90):
            while n not in numbers:
                with suppress(NotReady):
                    job, _ = await far_queue.submit(work(0.01), f"key {n}")
                    accepted[job.id] = job
                    numbers.add(n)
                await asyncio.sleep(0.02)

    numbers: set[int] = set()
    submitting = asyncio.gather(*(submit(n) for n in range(60)))
    for _ in range(3):
        await asyncio.sleep(0.15)
        own_redis.kill()
        await asyncio.sleep(0.2)
        await asyncio.to_thread(own_redis.start)
    await submitting
    assert len(accepted) == 60, "a key is one job, also where its answer got lost"
    for job in accepted.values():
        assert (await ended(far_queue, job)).status == "succeeded"
    assert ((await far_queue.counts("svc")).waiting, len(await far_queue.recent("local", 1000))) == (0, 60)
