"""Any order of submits, deliveries, deaths, cancels and retries leaves the queue as a plain model says it should be."""

# ruff: noqa: D102  (rules and invariants are named by what they say)

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from shared.errors import Conflict, Fault, InvalidOption, QueueFull
from shared.jobs import redis_keys
from shared.jobs.consumer import Delivery, NothingToDo, QueueConsumer
from shared.jobs.queue import Payload, Result
from shared.jobs.redis_queue import RedisJobQueue
from shared.jobs.redis_server import RedisServer
from shared.settings import Settings

ATTEMPTS = 2
ROOM = 6
FRONT = 0


@dataclass
class Expected:
    """What the model knows about one job."""

    level: int
    at: int = 0
    """The stream that holds it."""
    turn: int = 0
    """Its place in the line that callers see."""
    entry: int = 0
    """Its place in the stream."""
    status: str = "queued"
    tries: int = 0
    fence: int = 0
    dead: bool = False
    answer: bytes | None = None
    delayed: bool = False


class Machine(RuleBasedStateMachine):
    """Drives queue and inbox of one real Redis."""

    def __init__(self, url: str, chosen: Settings) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.queue = RedisJobQueue(url, chosen)
        self.inbox = QueueConsumer(url, "svc", chosen)
        self.jobs: dict[str, Expected] = {}
        self.used: dict[str, tuple[str, bytes]] = {}
        self.deliveries: list[Delivery] = []
        self.turns = 0
        self.run(self.queue._redis.client.flushall())

    def run(self, call: Any) -> Any:
        return self.runner.run(call)

    def teardown(self) -> None:
        self.run(self.queue.close())
        self.run(self.inbox.close())
        self.runner.close()

    def next_turn(self) -> int:
        self.turns += 1
        return self.turns

    def line(self) -> list[str]:
        waiting = [job_id for job_id, job in self.jobs.items() if job.status == "queued"]
        return sorted(waiting, key=lambda job_id: (self.jobs[job_id].at, self.jobs[job_id].turn))

    def enqueue(self, job: Expected, level: int) -> None:
        job.status, job.at, job.turn = "queued", level, self.next_turn()
        job.entry = job.turn

    @rule(priority=st.integers(-2, 2), key=st.sampled_from([None, None, "a", "b"]), body=st.sampled_from([b"x", b"y"]))
    def submit(self, priority: int, key: str | None, body: bytes) -> None:
        payload = Payload("svc", "/", body, priority=priority, tenant="t")
        if key in self.used and self.used[key][1] != body:
            with pytest.raises(Conflict):
                self.run(self.queue.submit(payload, key))
            return
        if key not in self.used and len(self.line()) >= ROOM:
            with pytest.raises(QueueFull):
                self.run(self.queue.submit(payload, key))
            return
        job, new = self.run(self.queue.submit(payload, key))
        assert new == (key not in self.used)
        if not new:
            assert job.id == self.used[str(key)][0]
            return
        if key:
            self.used[key] = (job.id, body)
        expected = Expected(redis_keys.stream_of(priority))
        self.enqueue(expected, expected.level)
        self.jobs[job.id] = expected

    @rule(reclaim=st.booleans())
    def take(self, reclaim: bool) -> None:
        if reclaim:
            time.sleep(0.003)  # every lease is over now
        for job in self.jobs.values():
            if job.delayed:
                job.delayed, job.entry = False, self.next_turn()
        wanted = self.expect_delivery(reclaim)
        found = self.run(self.inbox.take(reclaim=reclaim))
        if wanted is None:
            assert isinstance(found, NothingToDo)
            return
        assert isinstance(found, Delivery)
        job = self.jobs[wanted]
        job.status, job.tries, job.fence = "running", job.tries + 1, job.fence + 1
        assert (found.id, found.attempt, found.tries) == (wanted, job.fence, job.tries)
        self.deliveries.append(found)

    def expect_delivery(self, reclaim: bool) -> str | None:
        for level in redis_keys.LEVELS:
            here = sorted((job.entry, job_id) for job_id, job in self.jobs.items() if job.at == level)
            for _, job_id in here if reclaim else []:
                job = self.jobs[job_id]
                if job.status == "running" and job.tries < ATTEMPTS:
                    return job_id
                if job.status == "running":
                    job.status, job.dead = "failed", True
            for _, job_id in here:
                if self.jobs[job_id].status == "queued":
                    return job_id
        return None

    @precondition(lambda self: self.deliveries)
    @rule(data=st.data(), how=st.sampled_from(["succeed", "fail", "again", "hand_back", "progress", "renew"]))
    def write(self, data: st.DataObject, how: str) -> None:
        delivery = data.draw(st.sampled_from(self.deliveries), label="delivery")
        job = self.jobs[delivery.id]
        mine = job.status == "running" and job.fence == delivery.attempt
        if how == "again" and any(other.delayed for other in self.jobs.values()):
            return  # two that are due in the same millisecond come in either order
        getattr(self, how)(delivery, job, mine)

    def succeed(self, delivery: Delivery, job: Expected, mine: bool) -> None:
        answer = str(delivery.attempt).encode()
        self.run(self.inbox.succeed(delivery, Result(200, "text/plain", answer)))
        if mine:
            job.status, job.answer = "succeeded", answer

    def fail(self, delivery: Delivery, job: Expected, mine: bool) -> None:
        self.run(self.inbox.fail(delivery, InvalidOption("no")))
        if mine:
            job.status = "failed"

    def again(self, delivery: Delivery, job: Expected, mine: bool) -> None:
        self.run(self.inbox.again(delivery, Fault("no"), 0))
        if mine and job.tries >= ATTEMPTS:
            job.status, job.dead = "failed", True
        elif mine:
            self.enqueue(job, job.level)
            job.delayed = True

    def hand_back(self, delivery: Delivery, job: Expected, mine: bool) -> None:
        self.run(self.inbox.hand_back(delivery))
        if mine:
            job.tries -= 1
            self.enqueue(job, FRONT)

    def progress(self, delivery: Delivery, job: Expected, mine: bool) -> None:
        self.run(self.inbox.progress(delivery, 0.5, "half"))
        if mine:
            assert self.run(self.queue.get(delivery.id, "t")).note == "half"

    def renew(self, delivery: Delivery, job: Expected, mine: bool) -> None:
        lost = self.run(self.inbox.renew({delivery.id: delivery.attempt}))
        assert lost == (set() if mine else {delivery.id})

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(list(self.jobs)), label="job")
        self.run(self.queue.cancel(job_id, "t"))
        if self.jobs[job_id].status in {"queued", "running"}:
            self.jobs[job_id].status, self.jobs[job_id].delayed = "cancelled", False

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(list(self.jobs)), label="job")
        job = self.jobs[job_id]
        if job.status not in {"failed", "cancelled"}:
            with pytest.raises(Conflict):
                self.run(self.queue.retry(job_id, "t"))
        elif len(self.line()) >= ROOM:
            with pytest.raises(QueueFull):
                self.run(self.queue.retry(job_id, "t"))
        else:
            self.run(self.queue.retry(job_id, "t"))
            job.tries, job.dead = 0, False
            self.enqueue(job, job.level)

    @invariant()
    def the_queue_is_as_the_model_says(self) -> None:
        shown = {job.id: job for job in self.run(self.queue.recent("t", 1000))}
        assert shown.keys() == self.jobs.keys()
        for job_id, job in self.jobs.items():
            seen = shown[job_id]
            assert (seen.status, seen.attempts, seen.dead) == (job.status, job.fence, job.dead)
            assert (seen.expires is not None) == (job.status in {"succeeded", "failed", "cancelled"} and not job.dead)
        assert [job_id for job_id in self.line() if shown[job_id].position is None] == []
        assert sorted(self.line(), key=lambda job_id: shown[job_id].position or 0) == self.line()
        running = sum(job.status == "running" for job in self.jobs.values())
        assert self.run(self.queue.counts("svc")) == (len(self.line()), running)
        dead = {job.id for job in self.run(self.queue.dead("t", 1000))}
        assert dead == {job_id for job_id, job in self.jobs.items() if job.dead}

    @invariant()
    def answers_are_those_of_the_attempt_that_counted(self) -> None:
        for job_id, job in self.jobs.items():
            if job.answer is not None:
                assert self.run(self.queue.result(job_id, "t")).body == job.answer

    @invariant()
    def streams_and_backlogs_hold_exactly_the_jobs_that_wait_or_run(self) -> None:
        client = self.queue._redis.client
        held = [
            self.run(client.xlen(redis_keys.key("stream", f"svc:{level}")))
            + self.run(client.zcard(redis_keys.key("backlog", f"svc:{level}:t")))
            for level in redis_keys.LEVELS
        ]
        active = [job for job in self.jobs.values() if job.status in {"queued", "running"} and not job.delayed]
        assert held == [sum(job.at == level for job in active) for level in redis_keys.LEVELS]


def test_the_queue_agrees_with_the_model(redis_server: RedisServer, job_settings: Settings) -> None:
    chosen = job_settings.model_copy(
        update={"job_lease_s": 0.001, "job_max_attempts": ATTEMPTS, "job_queue_max": ROOM, "job_ttl_s": 1000}
    )
    with redis.Redis.from_url(redis_server.url) as client:
        client.config_set("appendfsync", "no")  # thousands of small steps; durability has tests of its own
        try:
            run_state_machine_as_test(
                lambda: Machine(redis_server.url, chosen),
                settings=settings(
                    max_examples=25,
                    stateful_step_count=30,
                    deadline=None,
                    phases=[Phase.reuse, Phase.generate],  # shrinking takes minutes here, and thirty steps can be read
                    suppress_health_check=[HealthCheck.too_slow],
                ),
            )
        finally:
            client.config_set("appendfsync", "always")
