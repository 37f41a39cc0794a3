"""Any order of submits, deliveries, deaths, cancels, retries, deletes, expiries, restarts agrees with a plain model."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import pytest
import redis
from hypothesis import Phase, settings, stateful
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from fovea.errors import Conflict, Fault, InvalidOption, NotFound, QueueFull, RateLimited
from shared.jobs import codec, redis_keys
from shared.jobs.consumer import Delivery, NothingToDo, QueueConsumer
from shared.jobs.queue import Payload, Result
from shared.jobs.redis_queue import RedisJobQueue
from shared.jobs.redis_server import RedisServer
from shared.settings import Settings
from tests.harness.hypothesis_profiles import fewer

ATTEMPTS = 2
ROOM = 6
QUOTA = 4000
INLINE = 100  # larger bodies go to the object store
FRONT = 0
BODIES = [b"x", b"y", b"z" * 700]


@dataclass
class Expected:
    level: int
    at: int = 0  # the stream that holds it
    turn: int = 0  # its place in the line that callers see
    entry: int = 0  # its place in the stream
    status: str = "queued"
    tries: int = 0
    fence: int = 0
    dead: bool = False
    answer: bytes | None = None
    delayed: bool = False
    body: bytes = b""
    held: int = 0  # bytes that count against the quota
    key: str | None = None


class Machine(RuleBasedStateMachine):
    """Drives queue and inbox of one real Redis."""

    def __init__(self, server: RedisServer, chosen: Settings) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.server, self.chosen = server, chosen
        self.queue = RedisJobQueue(server.url, chosen)
        self.inbox = QueueConsumer(server.url, "svc", chosen)
        self.jobs: dict[str, Expected] = {}
        self.used: dict[str, tuple[str, bytes]] = {}
        self.deliveries: list[Delivery] = []
        self.turns = 0
        self.run(self.queue._redis.client.flushall())
        self.queue._payloads._objects.delete_all()

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

    @stateful.initialize(
        bodies=st.lists(st.sampled_from([b"x", b"z" * 700]), min_size=1, max_size=4),
        ends=st.lists(st.sampled_from(["succeed", "fail", "again", "release"]), min_size=1, max_size=4),
    )
    def begin(self, bodies: list[bytes], ends: list[str]) -> None:
        """Without these hardly a run has a job that comes to its end."""
        for body in bodies:
            self.submit(0, None, body)
        for how in ends:
            self.take(reclaim=False)
            if self.runs(self.deliveries[-1]):
                getattr(self, how)(self.deliveries[-1], self.jobs[self.deliveries[-1].id], mine=True)
        self.take(reclaim=False)

    @rule(priority=st.integers(-2, 2), key=st.sampled_from([None, None, "a", "b"]), body=st.sampled_from(BODIES))
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
        size = codec.size_of(payload)
        if key not in self.used and sum(job.held for job in self.jobs.values()) + size > QUOTA:
            with pytest.raises(RateLimited, match="hold"):
                self.run(self.queue.submit(payload, key))
            return
        job, new = self.run(self.queue.submit(payload, key))
        assert new == (key not in self.used)
        if not new:
            assert job.id == self.used[str(key)][0]
            return
        if key:
            self.used[key] = (job.id, body)
        expected = Expected(redis_keys.stream_of(priority), body=body, held=size, key=key)
        self.enqueue(expected, expected.level)
        self.jobs[job.id] = expected

    @rule(reclaim=st.booleans())
    def take(self, reclaim: bool) -> None:
        if reclaim:
            time.sleep(0.003)  # every lease is over now
        for job in self.jobs.values():
            if job.delayed:
                job.delayed, job.entry = False, self.next_turn()
        wanted, found = self.expect_delivery(reclaim), self.run(self.inbox.take(reclaim=reclaim))
        if wanted is None:
            assert isinstance(found, NothingToDo)
            return
        assert isinstance(found, Delivery)
        job = self.jobs[wanted]
        job.status, job.tries, job.fence = "running", job.tries + 1, job.fence + 1
        assert (found.id, found.attempt, found.tries) == (wanted, job.fence, job.tries)
        assert self.run(self.inbox.payload(found)).body == job.body
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

    @precondition(lambda self: any(delivery.id in self.jobs for delivery in self.deliveries))
    @rule(data=st.data(), how=st.sampled_from(["succeed", "fail", "again", "release", "progress", "renew"]))
    def write(self, data: st.DataObject, how: str) -> None:
        known = [delivery for delivery in self.deliveries if delivery.id in self.jobs]
        running = [delivery for delivery in known if self.runs(delivery)]
        delivery = data.draw(st.sampled_from(running * 3 + known), label="delivery")
        job, mine = self.jobs[delivery.id], self.runs(delivery)
        if how == "again" and any(other.delayed for other in self.jobs.values()):
            return  # two that are due in the same millisecond come in either order
        getattr(self, how)(delivery, job, mine)

    def runs(self, delivery: Delivery) -> bool:
        return self.jobs[delivery.id].status == "running" and self.jobs[delivery.id].fence == delivery.attempt

    def succeed(self, delivery: Delivery, job: Expected, mine: bool) -> None:
        answer = str(delivery.attempt).encode() * (1 + 300 * (delivery.attempt % 2))
        self.run(self.inbox.succeed(delivery, Result(200, "text/plain", answer)))
        if mine:
            job.status, job.answer, job.held = "succeeded", answer, len(answer)

    def fail(self, delivery: Delivery, job: Expected, mine: bool) -> None:
        self.run(self.inbox.fail(delivery, InvalidOption("no")))
        if mine:
            job.status = "failed"

    def again(self, delivery: Delivery, job: Expected, mine: bool) -> None:
        self.run(self.inbox.retry(delivery, Fault("no"), 0))
        if mine and job.tries >= ATTEMPTS:
            job.status, job.dead = "failed", True
        elif mine:
            self.enqueue(job, job.level)
            job.delayed = True

    def release(self, delivery: Delivery, job: Expected, mine: bool) -> None:
        self.run(self.inbox.release(delivery))
        if mine:
            job.tries -= 1
            self.enqueue(job, FRONT)

    def progress(self, delivery: Delivery, job: Expected, mine: bool) -> None:
        before, note = self.run(self.queue.get(delivery.id, "t")).note, f"attempt {delivery.attempt}"
        self.run(self.inbox.progress(delivery, 0.5, note))
        assert self.run(self.queue.get(delivery.id, "t")).note == (note if mine else before)

    def renew(self, delivery: Delivery, job: Expected, mine: bool) -> None:
        lost = self.run(self.inbox.renew([delivery.key]))
        assert lost == (set() if mine else {delivery.key})

    def draw_job(self, data: st.DataObject) -> tuple[str, Expected]:
        job_id = data.draw(st.sampled_from(list(self.jobs)), label="job")
        return job_id, self.jobs[job_id]

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job_id, job = self.draw_job(data)
        self.run(self.queue.cancel(job_id, "t"))
        if job.status in {"queued", "running"}:
            job.status, job.delayed = "cancelled", False

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        job_id, job = self.draw_job(data)
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

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        job_id, job = self.draw_job(data)
        self.run(self.queue.delete(job_id, "t"))
        if job.status in {"queued", "running"}:
            job.status, job.delayed = "cancelled", False
        else:
            self.forget(job_id)

    @precondition(lambda self: any(job.status in {"succeeded", "failed", "cancelled"} for job in self.jobs.values()))
    @rule(data=st.data(), swept=st.booleans())
    def expire(self, data: st.DataObject, swept: bool) -> None:
        """A finished job's time is over, which callers see at once, whether or not it was swept."""
        over = [job_id for job_id, job in self.jobs.items() if self.expires(job)]
        if not over:
            return
        job_id, client = data.draw(st.sampled_from(over), label="job"), self.queue._redis.client
        self.run(client.hset(redis_keys.key("job", job_id), "expires", 1))
        self.run(client.zadd(redis_keys.key("expiring"), {job_id: 1}))
        with pytest.raises(NotFound):
            self.run(self.queue.get(job_id, "t"))
        if not swept:
            with pytest.raises(NotFound):
                self.run(self.queue.retry(job_id, "t"))
        self.forget(job_id)

    def expires(self, job: Expected) -> bool:
        return job.status in {"succeeded", "failed", "cancelled"} and not job.dead

    def forget(self, job_id: str) -> None:
        self.run(self.inbox.sweep())
        key = self.jobs.pop(job_id).key
        if key and self.used[key][0] == job_id:
            del self.used[key]

    @rule()
    def restart(self) -> None:
        """The Redis dies with its memory and comes back with what it had on disk."""
        if self.chosen.job_ttl_s != RESTARTING:
            return
        self.server.kill()
        self.server.start()

    @rule()
    def the_worker_dies(self) -> None:
        """Another worker takes over; what the dead one still writes is judged by its fence."""
        self.run(self.inbox.close())
        self.inbox = QueueConsumer(self.server.url, "svc", self.chosen)

    @precondition(lambda self: self.deliveries)
    @rule(data=st.data())
    def written_after_the_job_is_gone(self, data: st.DataObject) -> None:
        gone = [delivery for delivery in self.deliveries if delivery.id not in self.jobs]
        if gone:
            delivery = data.draw(st.sampled_from(gone), label="delivery")
            assert not self.run(self.inbox.succeed(delivery, Result(200, "text/plain", b"late")))
            assert not self.run(self.inbox.fail(delivery, InvalidOption("late")))
            assert self.run(self.inbox.renew([delivery.key])) == {delivery.key}

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
    def bytes_are_counted_to_the_last(self) -> None:
        held = self.run(self.queue._redis.client.get(redis_keys.key("bytes", "t")))
        assert int(held or 0) == sum(job.held for job in self.jobs.values())

    @invariant()
    def the_object_store_holds_what_may_still_be_read(self) -> None:
        stored = {facts.path for facts in self.queue._payloads._objects.list_objects()}
        may_run = {job_id: job for job_id, job in self.jobs.items() if job.status != "succeeded"}
        needed = {f"{job_id}/request" for job_id, job in may_run.items() if len(job.body) > INLINE}
        assert needed <= stored
        assert {path.split("/")[0] for path in stored} <= self.jobs.keys(), "payloads of jobs that are gone are gone"

    @invariant()
    def answers_are_those_of_the_attempt_that_counted(self) -> None:
        for job_id, job in self.jobs.items():
            if job.answer is not None:
                assert self.run(self.queue.result(job_id, "t")).body == job.answer

    @invariant()
    def streams_and_backlogs_hold_exactly_the_jobs_that_wait_or_run(self) -> None:
        asked = self.queue._redis.client.pipeline(transaction=False)
        for level in redis_keys.LEVELS:
            asked.xlen(redis_keys.key("stream", f"svc:{level}")).zcard(redis_keys.key("backlog", f"svc:{level}:t"))
        sizes = self.run(asked.execute())
        held = [stream + backlog for stream, backlog in zip(sizes[::2], sizes[1::2], strict=True)]
        active = [job for job in self.jobs.values() if job.status in {"queued", "running"} and not job.delayed]
        assert held == [sum(job.at == level for job in active) for level in redis_keys.LEVELS]


RESTARTING = 2000  # the time to live that marks runs with restarts, which take a tenth of a second each


def _check(server: RedisServer, chosen: Settings, examples: int) -> None:
    small = {"job_lease_s": 0.001, "job_max_attempts": ATTEMPTS, "job_queue_max": ROOM, "job_quota_bytes": QUOTA}
    chosen = chosen.model_copy(update={**small, "job_inline_max_bytes": INLINE})
    phases = [Phase.reuse, Phase.generate]  # shrinking takes minutes here, and thirty steps can be read
    how = settings(max_examples=examples, stateful_step_count=50, phases=phases)
    run_state_machine_as_test(lambda: Machine(server, chosen), settings=how)


def test_the_queue_agrees_with_the_model(own_redis, job_settings):
    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set("appendfsync", "no")  # thousands of small steps; the other test has restarts
    _check(own_redis, job_settings.model_copy(update={"job_ttl_s": 1000}), settings.default.max_examples)


def test_the_queue_agrees_with_the_model_over_restarts(own_redis, job_settings):
    _check(own_redis, job_settings.model_copy(update={"job_ttl_s": RESTARTING}), fewer(8))
