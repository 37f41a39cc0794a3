"""Promises to callers, against a real Redis; what the machine of test_job_machine walks through is not repeated."""

import asyncio
from dataclasses import replace

import pytest

from fovea.errors import Conflict, Fault, InvalidOption, NotFound, NotReady, QueueFull, RateLimited
from shared.jobs import redis_client, redis_keys, redis_queue
from shared.jobs.consumer import NothingToDo, QueueConsumer
from shared.jobs.queue import Payload, Result
from shared.jobs.redis_queue import RedisJobQueue
from shared.jobs.tests.running_worker import take
from tests.harness.waiting import until

DONE = Result(200, "application/json", b'{"mask": 1}', {"x-model": "pranet"})


async def test_request_and_answer_arrive_byte_for_byte(queue, inbox, payload):
    sent = Payload("svc", "/v1/x?a=ü", bytes(range(256)), {"accept": "image/png", "x": "\n"}, priority=7, tenant="t:1")
    await queue.submit(sent)
    delivery = await take(inbox)
    assert await inbox.payload(delivery) == sent
    await inbox.succeed(delivery, DONE)
    job, _ = await queue.submit(payload)
    assert await inbox.succeed(await take(inbox), DONE)
    assert await queue.result(job.id, "ann") == DONE
    done = await queue.get(job.id, "ann")
    assert (done.status, done.progress, done.position, done.attempts) == ("succeeded", 1.0, None, 1)
    assert (done.created <= done.started <= done.finished < done.expires, await queue.counts("svc")) == (True, (0, 0))


async def test_priorities_are_served_high_first_and_in_order_within(queue, inbox):
    wanted = {}
    for priority in (0, -5, 1, 0, 99, -1, 0, 0, 0):
        job, _ = await queue.submit(Payload("svc", "/", b"", priority=priority))
        wanted[job.id] = -max(-1, min(priority, 1))
    order = sorted(wanted, key=lambda job_id: wanted[job_id])
    positions = [(await queue.get(job_id, "local")).position for job_id in order]
    assert (positions, [(await take(inbox)).id for _ in order]) == ([*range(9)], order)


async def test_another_tenant_finds_nothing(queue, inbox, payload):
    await queue.submit(Payload("other", "/", b""))  # nor does another service
    assert isinstance(await inbox.take(reclaim=True), NothingToDo)
    assert (await queue.counts("other")).waiting == 1
    job, _ = await queue.submit(payload)
    for call in (queue.get, queue.result, queue.cancel, queue.retry):
        with pytest.raises(NotFound):
            await call(job.id, "bob")
    with pytest.raises(NotFound):
        await anext(queue.events(job.id, "bob"))
    assert (await queue.recent("bob"), (await queue.get(job.id, "ann")).status) == ([], "queued")
    for job_id in ("", "nope", "../../etc", "0" * 31, "A" * 32, "*", "0" * 32 + "\n"):
        with pytest.raises(NotFound, match="There is no job"):
            await queue.get(job_id, "ann")


async def test_recent_lists_newest_first_up_to_the_limit(queue, payload):
    ids = []
    for _ in range(4):
        ids.append((await queue.submit(payload))[0].id)
        await asyncio.sleep(0.002)
    assert [job.id for job in await queue.recent("ann", 3)] == ids[:0:-1]
    for job_id in ids[1:3]:
        await queue.cancel(job_id, "ann")
        await queue.delete(job_id, "ann")  # hidden, and in the list until the next sweep
    assert [job.id for job in await queue.recent("ann", 2)] == [ids[3], ids[0]]
    assert [job.id for job in await queue.recent("ann", 2, after=ids[2])] == [ids[0]]
    assert await queue.recent("ann", 2, after=ids[0]) == []
    with pytest.raises(NotFound, match="no job 'x'", check=lambda e: e.field == "after"):
        await queue.recent("ann", after="x")


async def test_a_full_queue_refuses_and_leaves_nothing_behind(queue, payload, job_settings):
    for _ in range(job_settings.job_queue_max):
        await queue.submit(payload)
    with pytest.raises(QueueFull) as refusal:
        await queue.submit(replace(payload, body=b"x" * 5000), "key")
    assert refusal.value.retry_after
    assert await queue._redis.client.keys("*:once:*") == []
    assert (await queue.counts("svc")).waiting == job_settings.job_queue_max
    assert await queue._payloads.older_than(-60) == []
    await queue.cancel((await queue.recent("ann"))[0].id, "ann")
    _, new = await queue.submit(payload, "key")
    assert new, "the refused submit must not have used up its key"


async def test_twenty_submits_with_one_key_are_one_job_another_request_a_conflict_and_keys_their_tenant_s(
    queue, payload
):
    answers = await asyncio.gather(*(queue.submit(replace(payload, body=b"x" * 3000), "twenty") for _ in range(20)))
    assert (len({job.id for job, _ in answers}), sum(new for _, new in answers)) == (1, 1)
    assert ((await queue.counts("svc")).waiting, await queue._payloads.older_than(-60)) == (1, [answers[0][0].id])
    first, _ = await queue.submit(payload, "key")
    told = {"Content-Type": "image/png", "traceparent": "b"}  # headers of a trace do not make another request
    again, new = await queue.submit(replace(payload, headers=told, priority=1), "key")
    assert (again.id, new) == (first.id, False)
    other, new = await queue.submit(replace(payload, tenant="bob"), "key")
    assert (new, other.id != first.id) == (True, True)
    with pytest.raises(Conflict, match="idempotency key"):
        await queue.submit(replace(payload, body=b"other"), "key")


async def test_a_failed_job_can_be_tried_again(queue, inbox, payload):
    job, _ = await queue.submit(payload)
    await inbox.fail(await take(inbox), InvalidOption("No.", field="size"))
    failed, answer = await queue.get(job.id, "ann"), await queue.result(job.id, "ann")
    assert (failed.status, failed.error["code"], failed.error["field"]) == ("failed", "invalid_option", "size")
    assert (answer.status, answer.content_type) == (422, "application/problem+json")
    again = await queue.retry(job.id, "ann")
    assert (again.status, again.error, again.finished, again.expires) == ("queued", None, None, None)
    delivery = await take(inbox)
    assert (delivery.id, delivery.attempt, delivery.tries) == (job.id, 2, 1)
    assert (await inbox.payload(delivery)).body == b"body"
    client, held = queue._redis.client, redis_keys.key("bytes", "ann")
    assert await client.zscore(redis_keys.key("expiring"), job.id) is None, "the sweep leaves it alone"
    before = int(await client.get(held))
    await inbox.fail(delivery, Result(422, "text/plain", b"n" * 100))
    assert int(await client.get(held)) == before + 100
    await queue.delete(job.id, "ann")
    assert await client.get(held) is None, "before the sweep"


async def test_a_job_tried_again_is_run_for_the_key_that_asks(queue, inbox, payload):
    first = {"x-fovea-tenant": "ann", "x-fovea-scopes": "infer,interventions,jobs", "x-fovea-key": '{"id": "a"}'}
    job, _ = await queue.submit(replace(payload, headers={"accept": 'text/plain; q="é/1"', **first}))
    await inbox.fail(await take(inbox), InvalidOption("No."))
    second = {"x-fovea-tenant": "ann", "x-fovea-scopes": "infer,jobs"}
    await queue.retry(job.id, "ann", second)
    assert (await take(inbox)).headers == {"accept": 'text/plain; q="é/1"', **second}


async def test_only_unsuccessful_jobs_can_be_tried_again_and_only_finished_ones_have_a_result(queue, inbox, payload):
    job, _ = await queue.submit(payload)
    for call in (queue.retry, queue.result):
        with pytest.raises(Conflict, match="queued"):
            await call(job.id, "ann")
    delivery = await take(inbox)
    for call in (queue.retry, queue.result):
        with pytest.raises(Conflict, match="running"):
            await call(job.id, "ann")
    await inbox.succeed(delivery, DONE)
    with pytest.raises(Conflict, match="succeeded"):
        await queue.retry(job.id, "ann")


async def test_the_oldest_of_too_many_dead_letters_are_let_go(redis_url, queue, job_settings, payload):
    settings = job_settings.model_copy(update={"job_dead_letter_max": 2, "job_max_attempts": 1})
    inbox, ids = QueueConsumer(redis_url, "svc", settings), []
    for _ in range(3):
        ids.append((await queue.submit(payload))[0].id)
        await inbox.retry(await take(inbox), Fault("Out of luck."), 0)
        await asyncio.sleep(0.002)
    assert [job.id for job in await queue.dead("ann")] == [ids[2], ids[1]]
    with pytest.raises(NotFound):
        await queue.get(ids[0], "ann")
    assert await inbox.sweep() == 1
    await inbox.close()


async def test_large_bodies_stay_out_of_redis_and_leave_with_the_job(redis_url, queue, inbox, payload, job_settings):
    job, _ = await queue.submit(replace(payload, body=b"q" * 1001))
    folder = job_settings.data_dir / "blobs" / job.id
    assert (folder / "request").read_bytes() == b"q" * 1001
    delivery = await take(inbox)
    assert (delivery.body, (await inbox.payload(delivery)).body) == (None, b"q" * 1001)
    await inbox.succeed(delivery, replace(DONE, body=b"a" * 1001))
    assert not (folder / "request").exists(), "a succeeded job is never run again"
    kept = await queue._redis.client.hgetall(redis_keys.key("job", job.id))
    assert (sum(map(len, kept.values())) < 1000, (await queue.result(job.id, "ann")).body) == (True, b"a" * 1001)
    short = QueueConsumer(redis_url, "svc", job_settings)
    await queue._redis.client.zadd(redis_keys.key("expiring"), {job.id: 0})
    assert (await short.sweep(), folder.exists()) == (1, False)
    await short.close()
    await queue.submit(replace(payload, body=b"q" * 1000))  # exactly the limit
    delivery = await take(inbox)
    assert delivery.body == b"q" * 1000
    await inbox.succeed(delivery, replace(DONE, body=b"a" * 1000))
    assert await queue._payloads.older_than(-60) == []


async def test_finished_jobs_are_forgotten_after_their_time(redis_url, payload, job_settings):
    settings = job_settings.model_copy(update={"job_ttl_s": 1})
    queue, inbox = RedisJobQueue(redis_url, settings), QueueConsumer(redis_url, "svc", settings)
    done, _ = await queue.submit(payload, "key")
    await inbox.succeed(await take(inbox), DONE)
    gone, _ = await queue.submit(payload)
    await queue.cancel(gone.id, "ann")
    stays, _ = await queue.submit(payload)
    assert await inbox.sweep() == 0
    await asyncio.sleep(1.05)
    for job_id in (done.id, gone.id):
        with pytest.raises(NotFound):
            await queue.get(job_id, "ann")
    assert [job.id for job in await queue.recent("ann")] == [stays.id], "expired jobs are hidden before the sweep"
    again, new = await queue.submit(payload, "key")
    assert new, "an expired job frees its idempotency key"
    assert await inbox.sweep() == 2
    assert (await queue.submit(payload, "key"))[0].id == again.id, "the sweep leaves the key of the newer job"
    left = [key.decode() for key in await queue._redis.client.keys("*:job:*")]
    assert sorted(left) == sorted(redis_keys.key("job", job_id) for job_id in (stays.id, again.id))
    await queue.close()
    await inbox.close()


async def collect(queue: RedisJobQueue, job_id: str) -> list[tuple[str, float, str | None]]:
    return [(job.status, job.progress, job.note) async for job in queue.events(job_id, "ann")]


async def test_events_tell_every_step_and_end_with_the_final_state(queue, inbox, payload, monkeypatch):
    monkeypatch.setattr(redis_queue, "_EVENTS_POLL_S", 30)
    job, _ = await queue.submit(payload)
    seen: list[tuple[str, float, str | None]] = []

    async def follow() -> None:
        async for now in queue.events(job.id, "ann"):
            seen.append((now.status, now.progress, now.note))
            await asyncio.sleep(0.05)  # what changes meanwhile is not missed

    following = asyncio.create_task(follow())
    await until(lambda: len(seen) == 1)
    delivery = await take(inbox)
    await until(lambda: len(seen) == 2)
    await inbox.progress(delivery, 0.5, "half")
    await until(lambda: len(seen) == 3)
    await inbox.succeed(delivery, DONE)
    await asyncio.wait_for(following, 5)
    assert seen == [("queued", 0.0, None), ("running", 0.0, None), ("running", 0.5, "half"), ("succeeded", 1.0, None)]
    job, _ = await queue.submit(payload)
    await queue.cancel(job.id, "ann")
    assert await collect(queue, job.id) == [("cancelled", 0.0, None)]
    assert (await queue.result(job.id, "ann")).status == 499


async def test_many_watchers_share_one_connection(queue, inbox, payload):
    job, _ = await queue.submit(payload)
    followers = [asyncio.create_task(collect(queue, job.id)) for _ in range(50)]
    await until(lambda: len(queue._changes._watchers.get(job.id, ())) == 50)
    subscribers = await queue._redis.client.pubsub_numsub(redis_keys.key("changed"))
    await inbox.succeed(await take(inbox), DONE)
    stories = await asyncio.gather(*followers)
    assert (all(story[-1][0] == "succeeded" for story in stories), subscribers[0][1] <= 1) == (True, True)
    assert not queue._changes._watchers, "finished watchers leave nothing behind"


async def test_every_method_raises_not_ready_while_redis_is_away_and_a_wrong_password_is_said(
    redis_url, job_settings, payload
):
    queue = RedisJobQueue(redis_url.replace("redis://:", "redis://:wrong"), job_settings)
    with pytest.raises(NotReady, match="password"):
        await queue.counts("svc")
    await queue.close()
    queue, some = RedisJobQueue("redis://127.0.0.1:1", job_settings), "0" * 32
    calls = [call(some, "ann") for call in (queue.get, queue.result, queue.cancel, queue.retry)]
    calls += [queue.submit(payload), queue.recent("ann"), queue.dead("ann"), anext(queue.events(some, "ann"))]
    calls += [queue.counts("svc"), queue.workers("svc")]
    for answer in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(answer, NotReady)
        assert answer.retry_after
    await queue.close()


async def test_a_redis_that_is_silent_or_restarted_just_before_a_call_is_one_that_is_away(
    queue, job_settings, payload, monkeypatch
):
    client = queue._redis.client

    async def load_and_restart(script: str) -> object:
        sha = await client.execute_command("SCRIPT LOAD", script)
        await client.script_flush()
        return sha

    monkeypatch.setattr(client, "script_load", load_and_restart)
    await client.script_flush()
    with pytest.raises(NotReady, match="can't be reached"):
        await queue.submit(payload)
    monkeypatch.setattr(redis_client, "_TIMEOUT_S", 0.3)
    connections: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda _, writer: connections.append(writer), "127.0.0.1", 0)
    unheard = RedisJobQueue(f"redis://127.0.0.1:{silent.sockets[0].getsockname()[1]}", job_settings)
    with pytest.raises(NotReady, match="can't be reached"):
        await unheard.submit(payload)
    assert len(connections) == 1, "a second try would have the caller wait as long again"
    await unheard.close()
    connections[0].close()
    silent.close()


class Script:
    """In place of Redis: answers each verb with the next reply, and remembers what was called."""

    def __init__(self, *replies: object) -> None:
        self.replies, self.calls = list(replies), list[tuple[object, ...]]()

    async def run_script(self, *call: object) -> object:
        self.calls.append(call)
        return self.replies.pop(0)


async def test_refusals_say_what_is_wrong_and_what_to_do(job_settings, payload):
    queue = RedisJobQueue("redis://127.0.0.1:1", job_settings)

    async def refused(*replies: object, call: str = "submit") -> Exception:
        queue._redis = Script(*replies)
        with pytest.raises((Conflict, QueueFull, RateLimited, NotFound)) as caught:
            await (queue.submit(payload) if call == "submit" else getattr(queue, call)("a" * 32, "ann"))
        return caught.value

    full = await refused([b"full", b"7"])
    assert (full.detail, full.hint, full.retry_after) == ("7 jobs already wait for svc.", "Try again in a moment.", 5)
    quota = await refused([b"quota", b"1234567"])
    assert quota.detail.startswith(f"Your jobs hold 1,234,567 bytes of at most {job_settings.job_quota_bytes:,}:")
    assert "DELETE /v1/jobs/{id}" in quota.hint
    conflict = await refused([b"conflict", b""])
    assert conflict.detail == "This idempotency key was used for another request."
    assert conflict.hint == "Send a new Idempotency-Key with a new request."
    for call, reply in (("get", None), ("result", None), ("cancel", b"missing"), ("retry", b"missing")):
        unknown = await refused(reply, call=call)
        assert unknown.detail == f"There is no job {'a' * 32!r}."
        assert unknown.hint == "It may have expired; `GET /v1/jobs` lists the jobs there are."
    with pytest.raises(NotFound, match=f"^There is no job '{'b' * 64}'") as odd:
        await queue.get("b" * 99, "ann")
    assert "b" * 65 not in odd.value.detail


async def test_what_is_asked_of_redis_has_the_limits_of_the_settings(payload, job_settings):
    settings = job_settings.model_copy(update={"job_ttl_s": 100, "job_cancelled_ttl_s": 7})
    queue = RedisJobQueue("redis://127.0.0.1:1", settings)
    queue._redis = script = Script(b"missing", b"missing", [], [], [], (3, 2))
    for call in (queue.cancel("a" * 32, "ann"), queue.retry("a" * 32, "ann")):
        with pytest.raises(NotFound):
            await call
    assert [await queue.recent("ann"), await queue.recent("ann", 0), await queue.dead("ann", 9999)] == [[], [], []]
    assert await queue.counts("svc") == (3, 2)
    assert [call[:4] for call in script.calls] == [
        ("cancel", "a" * 32, "ann", 7000), ("retry", "a" * 32, "ann", 30), ("list", "tenant", "ann", 50),
        ("list", "tenant", "ann", 1), ("list", "dead", "ann", 1000), ("counts", "svc"),
    ]  # fmt: skip
