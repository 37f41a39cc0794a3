"""The small parts: keys, records, the link's words for an absent Redis, the waking of watchers, tasks that must end."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from importlib.resources import files
from unittest.mock import AsyncMock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import exceptions as gone

from fovea.errors import Cancelled, Fault, InvalidOption, NotFound, NotReady, StorageFull, TooLarge
from shared.jobs import codec, redis_client, redis_keys
from shared.jobs.queue import Payload, Result
from tests.harness.waiting import sleep_through_a_cancel

PAYLOAD = Payload("svc", "/v1/x", b"body", {"Content-Type": "image/png", "traceparent": "a"})


def test_lua_and_python_name_the_same_keys():
    script = files("shared.jobs").joinpath("states.lua").read_text()
    used = set(re.findall(r"key\('(\w+)'", script))
    owner = r"(?:all|digest|job id|service(?::N)?(?::tenant)?|tenant)"
    kind = r"(?:hash|stream|zset|number|channel|string|set)"
    described = re.findall(rf"^    (\w+) +{owner} +{kind}", redis_keys.__doc__ or "", re.MULTILINE)
    assert used == set(described)
    assert redis_keys.key("job", "x") == "{fovea:jobs}:job:x"


def test_a_fingerprint_ignores_the_case_of_names_and_what_is_only_told_and_tells_different_requests_apart():
    same = replace(PAYLOAD, headers={"content-type": "image/png", "x-request-id": "b"}, priority=1, tenant="bob")
    assert codec.fingerprint(PAYLOAD) == codec.fingerprint(same)
    for change in ({"service": "s"}, {"path": "/"}, {"body": b""}, {"headers": {"accept": "x"}}):
        assert codec.fingerprint(PAYLOAD) != codec.fingerprint(replace(PAYLOAD, **change))


def test_a_form_sent_again_is_the_same_request_though_clients_draw_a_new_boundary():
    def sent(boundary: str, value: str = "1", *, quote: str = "") -> str:
        headers = {"content-type": f"multipart/form-data; boundary={quote}{boundary}{quote}"}
        part = f'--{boundary}\r\ncontent-disposition: form-data; name="a"\r\n\r\n{value}\r\n--{boundary}--\r\n'
        return codec.fingerprint(replace(PAYLOAD, headers=headers, body=part.encode()))

    assert sent("one") == sent("t.wo+?") == sent("3", quote='"')
    assert sent("one") != sent("one", "2")


@pytest.mark.parametrize(("outcome", "status"), [
    (Result(404, "", b""), 404), (InvalidOption("x"), 422), (ValueError("x"), 500),
    (asyncio.CancelledError(), 499), (Cancelled("x"), 499),
])  # fmt: skip
def test_every_outcome_has_a_status(outcome, status):
    assert codec.get_status(outcome) == status


@pytest.mark.parametrize(("body", "detail"), [
    (b'{"title":"T","status":422,"detail":"Too wide.","code":"invalid_option","limit":9}', "Too wide."),
    (b'{"error": {"message": "Too wide.", "code": "x"}}', "Too wide."), (b'{"error": "Too wide."}', "Too wide."),
    (b"<h1>Too wide.</h1>", "The service answered 422."),
])  # fmt: skip
def test_a_problem_says_what_the_body_of_any_of_our_protocols_says_and_not_what_is_not_meant_for_callers(body, detail):
    assert json.loads(codec.encode_problem(Result(422, "", body)))["detail"] == detail
    assert "secret" not in codec.encode_problem(ValueError("secret"))
    assert json.loads(codec.encode_problem(TooLarge("Big.", hint="Shrink it.")))["hint"] == "Shrink it."


@given(st.tuples(st.text(), st.text()), st.tuples(st.text(), st.text()))
def test_no_tenant_can_reach_anothers_idempotency_key(one, other):
    assert (redis_keys.idempotency_name(*one) == redis_keys.idempotency_name(*other)) == (one == other)


ERRORS = st.recursive(
    st.none() | st.text() | st.integers(),
    lambda inner: st.dictionaries(st.sampled_from(["error", "message", "title"]), inner),
)


@given(st.binary(max_size=40) | ERRORS.map(lambda body: json.dumps(body).encode()))
def test_any_error_body_makes_a_problem(body):
    problem = json.loads(codec.encode_problem(Result(404, "text/plain", body)))
    assert (problem["status"], problem["code"], bool(problem["detail"])) == (404, NotFound("").code, True)


AWAY = (
    gone.ConnectionError("x"), gone.TimeoutError("x"), gone.BusyLoadingError("x"), ConnectionResetError("x"),
    gone.ReadOnlyError("x"), gone.ResponseError("MISCONF Redis is configured …"),
    gone.ResponseError("NOREPLICAS Not enough"), gone.AuthenticationError("x"),
)  # fmt: skip
FULL = (gone.OutOfMemoryError("x"), gone.ResponseError("MISCONF … No space left on device"))


@pytest.mark.parametrize(("error", "kind"), [
    *((error, NotReady) for error in AWAY), *((error, StorageFull) for error in FULL),
    (gone.ResponseError("ERR wrong number of arguments"), gone.ResponseError),  # a mistake of ours
])  # fmt: skip
def test_an_absent_or_full_redis_is_told_from_our_own_mistakes(error, kind):
    with pytest.raises(kind) as caught, redis_client.translate_redis_errors():
        raise error
    if kind is StorageFull:
        assert ("full" in caught.value.detail, bool(caught.value.hint)) == (True, True)


async def test_patience_outlives_an_outage_and_is_only_for_an_absent_redis():
    call = AsyncMock(side_effect=[NotReady("1"), NotReady("2"), "back", Fault("x")])
    assert await redis_client.retry_until_connected(call) == "back"
    with pytest.raises(Fault):
        await redis_client.retry_until_connected(call)


async def test_a_task_that_swallows_a_cancel_is_ended_all_the_same():
    async def stubborn() -> None:
        for _ in range(2):
            await sleep_through_a_cancel(asyncio.Event())
        await asyncio.sleep(60)

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    async with asyncio.timeout(2):
        await redis_client.cancel_tasks(task)
    assert task.cancelled()


@contextlib.asynccontextmanager
async def listening(redis_url: str) -> AsyncIterator[tuple[redis_client.RedisClient, redis_client.ChangeListener]]:
    link = redis_client.RedisClient(redis_url)
    changes = redis_client.ChangeListener(link, "news")
    try:
        yield link, changes
    finally:
        await changes.close()
        await link.close()


async def settled(link: redis_client.RedisClient, *events: asyncio.Event) -> None:
    async with asyncio.timeout(5):
        while (await link.client.pubsub_numsub("news"))[0][1] != 1:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    await asyncio.sleep(0.02)
    for event in events:
        event.clear()


async def test_a_change_wakes_its_watchers_and_nobody_else_also_when_the_subscription_comes_back(own_redis):
    async with listening(own_redis.url) as (link, changes):
        watch = changes.watch
        with watch("a") as a, watch("a") as also_a, watch("b") as b, watch() as anything:
            for is_cut in (False, True):
                if is_cut:
                    own_redis.kill()
                    await asyncio.sleep(0.1)
                    own_redis.start()
                    async with asyncio.timeout(5):
                        await asyncio.gather(a.wait(), b.wait())
                await settled(link, a, also_a, b, anything)
                await link.client.publish("news", "a")
                async with asyncio.timeout(2):
                    await asyncio.gather(a.wait(), also_a.wait(), anything.wait())
                assert not b.is_set()
                a.clear()


async def test_closing_ends_at_any_moment(redis_url):
    for delay in range(30):
        async with asyncio.timeout(2), listening(redis_url) as (_, changes):
            with changes.watch("a"):
                await asyncio.sleep(delay * 0.0002)
