"""Rates and quotas: counted in a real Redis, and here while it is away; what a tenant consumed is in the ledger."""

import asyncio
import csv
import io
import json
import time
import types
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from limits import RateLimitItemPerMinute
from prometheus_client.parser import text_string_to_metric_families
from redis.exceptions import RedisError
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from structlog.testing import capture_logs

from fovea.api.usage import USAGE_HEADER, UsageScanner, find_model, read_header
from fovea.errors import RateLimited
from services.gateway.policy.caller import LOCAL, Caller, KeyLimits
from services.gateway.policy.quotas import QuotaSpent, RateLimiter, RateLimitStatus
from services.gateway.routes.health import merge_metrics
from shared.jobs.usage_ledger import UsageLedger
from shared.settings import Settings

ANN = Caller("ann", frozenset({"infer"}), "k1", KeyLimits(rate_per_minute=3))


async def spend(limits: RateLimiter, caller: Caller) -> int:
    count = 0
    while count < 100:
        try:
            await limits.count(caller)
        except RateLimited:
            return count
        count += 1
    return count


async def test_a_keys_own_rate_wins_over_the_common_one_and_nothing_is_limited_unless_told_to(monkeypatch):
    limits = RateLimiter(Settings(auth="keys", rate_limit_rpm=5))
    assert await spend(limits, ANN) == 3
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert 55 < (await limits.read(ANN))[0].resets_in_s <= 60, "also where the clock is put back"
    assert await spend(limits, Caller("bob", frozenset(), "k2")) == 5
    limits = RateLimiter(Settings(auth="keys", rate_limit_rpm=5))
    await limits.count(Caller("bob", frozenset(), "k2"))
    await limits.count(Caller("bob", frozenset(), "k3"))
    assert await spend(limits, Caller("bob", frozenset(), "k2")) == 3
    assert await RateLimiter(Settings()).count(LOCAL) is None
    assert await spend(RateLimiter(Settings(rate_limit_rpm=4)), LOCAL) == 4
    limits = RateLimiter(Settings())
    await limits.spend_tokens(Caller("ann", frozenset(), "k1", KeyLimits(tokens_per_day=1)), 5)
    assert (limits._windows, RateLimiter(Settings(redis_url="redis://127.0.0.1:1"))._shared) == ({}, None)


async def test_gateways_agree_through_redis_whose_counters_have_a_prefix_and_end_by_themselves(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        others = client.info("clients")["connected_clients"]
    one, two = (RateLimiter(Settings(auth="keys", redis_url=redis_url)) for _ in range(2))
    first, second = await one.count(ANN), await two.count(ANN)
    assert (first.used, second.used) == (1, 2)
    assert abs(first.resets_at - second.resets_at) < 2
    assert 55 < second.wait_s <= 61
    assert await spend(one, ANN) == 1
    await one.stop()
    await two.stop()
    with redis.Redis.from_url(redis_url) as client:
        (key,) = client.keys()
        assert (key.decode().startswith("fovea:limits"), b"key/k1" in key) == (True, True)
        assert 55 < client.ttl(key) <= 60
        assert client.info("clients")["connected_clients"] <= others


@pytest.mark.timed("Only a clock tells that no request waits for the connection to a dead Redis.")
async def test_counting_goes_on_while_redis_is_away(own_redis):
    limits = RateLimiter(Settings(auth="keys", redis_url=own_redis.url))
    await limits.count(ANN)
    own_redis.kill()
    begun = time.monotonic()
    assert await spend(limits, ANN) == 2, "what Redis had counted is not granted again"
    assert time.monotonic() - begun < 1
    own_redis.start()
    limits._redis_retry_at = 0
    assert await spend(limits, ANN) == 0
    await limits.stop()


@pytest.mark.timed("A busy pool differs from an outage by the time of the answer alone.")
async def test_a_burst_waits_for_connections_and_is_not_an_outage(redis_url):
    limits = RateLimiter(Settings(auth="keys", redis_url=redis_url))
    many = Caller("ann", frozenset(), "k9", KeyLimits(rate_per_minute=1000))
    counted = await asyncio.gather(*(limits.count(many) for _ in range(400)))
    assert sorted(status.used for status in counted if status) == list(range(1, 401))
    with redis.Redis.from_url(redis_url) as client:
        assert client.info("clients")["connected_clients"] < 50
    assert limits._redis_retry_at == 0
    await limits.stop()


@pytest.mark.parametrize("shared", [False, True])
async def test_requests_that_come_together_are_counted_whole_or_not_at_all_and_uses_are_read(redis_url, shared):
    limits = RateLimiter(Settings(auth="keys", redis_url=redis_url if shared else None))
    caller = Caller("ann", frozenset(), "k6", KeyLimits(rate_per_minute=10, quota_per_day=12, tokens_per_day=50))
    await limits.count_many(caller, 7)
    with pytest.raises(QuotaSpent, match=r"^These are 4 requests; 3 of 10 requests per minute are left") as refused:
        await limits.count_many(caller, 4)
    assert refused.value.hint == "Send fewer at a time, or try again later."
    assert (refused.value.counter.limit, refused.value.counter.used) == (10, 7)
    await limits.count_many(caller, 3)
    await limits.spend_tokens(caller, 60)
    uses = await limits.read(caller)
    assert [(use.unit, use.limit, use.used) for use in uses] == [
        ("requests per minute", 10, 10), ("requests per day", 12, 10), ("tokens per day", 50, 50)
    ]  # fmt: skip
    assert 0 < uses[0].resets_in_s <= 60 < uses[1].resets_in_s <= 86_400
    with pytest.raises(QuotaSpent):
        await limits.count(caller)
    with pytest.raises(QuotaSpent, match="; 0 of 10 requests per minute are left"):
        await limits.count_many(caller, 1)
    fast = Caller("ann", frozenset(), "k7", KeyLimits(rate_per_minute=100, quota_per_day=2))
    with pytest.raises(QuotaSpent, match=r"^These are 3 requests; 2 of 2 requests per day are left"):
        await limits.count_many(fast, 3)
    assert [use.used for use in await limits.read(fast)] == [0, 0]
    assert {window.unsent for window in limits._windows.values()} == {0}
    await limits.stop()


@pytest.mark.parametrize("shared", [False, True])
async def test_batches_at_once_do_not_find_the_same_room(redis_url, shared):
    limits = RateLimiter(Settings(auth="keys", redis_url=redis_url if shared else None))
    caller = Caller("ann", frozenset(), "k8", KeyLimits(rate_per_minute=10, quota_per_day=100))
    told = await asyncio.gather(*(limits.count_many(caller, 6) for _ in range(5)), return_exceptions=True)
    assert sum(error is None for error in told) == 1
    assert [use.used for use in await limits.read(caller)] == [6, 6]
    await limits.count_many(caller, -6)
    assert [use.used for use in await limits.read(caller)] == [0, 0]
    await limits.stop()


async def test_headers_say_where_a_caller_stands_and_when_to_come_back(served, ring):
    _, text = ring.add("ann", ("infer",), rate_per_minute=2)
    scene = await served(auth="keys")
    answers = [await scene.client.post("/v1/echo", headers={"x-api-key": text}) for _ in range(3)]
    assert [a.status_code for a in answers] == [200, 200, 429]
    assert [a.headers.get("x-ratelimit-remaining") for a in answers[:2]] == ["1", "0"]
    assert answers[0].headers["x-ratelimit-limit"] == "2"
    assert 0 < int(answers[2].headers["retry-after"]) <= 60
    assert answers[2].json()["code"] == "rate_limited"
    assert (answers[2].headers["x-ratelimit-limit"], answers[2].headers["x-ratelimit-remaining"]) == ("2", "0")
    in_openai = await scene.client.get("/v1/models", headers={"x-api-key": text})
    assert in_openai.json()["error"]["type"] == "rate_limit_error"
    in_oip = await scene.client.post("/v2/models/pranet/infer", headers={"x-api-key": text})
    assert (in_oip.status_code, "2 requests per minute" in in_oip.json()["error"]) == (429, True)


@pytest.fixture
def clock(monkeypatch):
    now = types.SimpleNamespace(seconds=1000.0)
    fake = types.SimpleNamespace(time=lambda: now.seconds, monotonic=lambda: now.seconds)
    monkeypatch.setattr("services.gateway.policy.quotas.time", fake)
    return now


class Storage:
    """Redis as the limiter sees it: counters that another gateway counts too, and that may be away."""

    def __init__(self) -> None:
        self.used: dict[str, int] = {}
        self.ends: dict[str, float] = {}
        self.calls: list[tuple[Any, ...]] = []
        self.is_away = False

    async def incr(self, key: str, expiry: int, amount: int) -> int:
        self._note("incr", key, expiry, amount)
        self.used[key] = self.used.get(key, 0) + amount
        return self.used[key]

    async def get(self, key: str) -> int:
        self._note("get", key)
        return self.used.get(key, 0)

    async def get_expiry(self, key: str) -> float:
        self._note("get_expiry", key)
        return self.ends[key]

    def _note(self, *call: Any) -> None:
        self.calls.append(call)
        if self.is_away:
            raise ConnectionRefusedError("no Redis here")


@pytest.fixture
def stored(clock):
    limits, storage = RateLimiter(Settings(auth="keys")), Storage()
    limits._shared = storage
    return limits, storage


MINUTE = RateLimitItemPerMinute(9)
KEY = MINUTE.key_for("key/k1")


async def test_a_window_ends_after_its_minute_and_a_refusal_says_what_is_spent_and_when_it_is_back(clock):
    limits = RateLimiter(Settings(auth="keys"))
    for seconds, used, end in ((1000.0, 1, 1060.0), (1059.9, 2, 1060.0), (1060.0, 1, 1120.0)):
        clock.seconds = seconds
        assert await limits.count(ANN) == RateLimitStatus(3, used, end)
    clock.seconds = 1000.0
    limits = RateLimiter(Settings(auth="keys"))
    for _ in range(3):
        await limits.count(ANN)
    for seconds, used, left, wait_s in ((1000.0, 4, "60 s", 60.0), (1058.5, 5, "2 s", 1.5), (1059.7, 6, "1 s", 1.0)):
        clock.seconds = seconds
        with pytest.raises(QuotaSpent) as refused:
            await limits.count(ANN)
        assert refused.value.detail == "3 requests per minute are allowed, and all are used."
        assert (refused.value.hint, refused.value.retry_after) == (f"Try again in {left}.", wait_s)
        assert refused.value.counter == RateLimitStatus(3, used, 1060.0)
    assert [value for _, value in refused.value.counter.headers] == [b"3", b"0", b"1"]


@pytest.mark.parametrize(("quota", "unit"), [
    ("quota_per_day", "1 requests per day"), ("tokens_per_minute", "1 tokens per minute"),
    ("tokens_per_day", "1 tokens per day"),
])  # fmt: skip
async def test_each_quota_has_its_unit_and_its_window(clock, quota, unit):
    limits = RateLimiter(Settings(auth="keys"))
    caller, other = (Caller("ann", frozenset(), key, KeyLimits(**{quota: 1})) for key in ("k1", "k2"))
    await limits.spend_tokens(caller, 0)
    await limits.spend_tokens(caller, -5)
    assert limits._windows == {}
    await limits.count(caller)
    await limits.spend_tokens(caller, 1)
    with pytest.raises(QuotaSpent, match=f"^{unit} are allowed") as refused:
        await limits.count(caller)
    assert (refused.value.retry_after, refused.value.counter.used) == (86_400 if "day" in unit else 60, 2)
    assert await limits.count(other) is not None


async def test_hits_that_redis_missed_are_sent_when_it_is_back(stored, clock):
    limits, storage = stored
    with capture_logs() as told:
        for seconds, is_away, hits, used, sent in (
            (1000.0, False, 2, 2, [2]), (1010.0, True, 1, 3, [1]), (1011.9, True, 3, 6, []),
            (1012.0, True, 1, 7, [5]), (1014.0, False, 1, 8, [6]), (1014.0, False, 1, 9, [1]),
        ):  # fmt: skip
            clock.seconds, storage.is_away, calls = seconds, is_away, len(storage.calls)
            assert await limits._hit(MINUTE, "key/k1", hits) == RateLimitStatus(9, used, 1060.0)
            asked = [call for call in storage.calls[calls:] if call[0] == "incr"]
            assert asked == [("incr", KEY, 60, amount) for amount in sent], "Redis is left alone for two seconds"
    assert [line["reason"] for line in told] == ["no Redis here"] * 2


async def test_a_window_that_another_gateway_began_ends_when_that_one_says(stored, clock):
    limits, storage = stored
    storage.used[KEY], storage.ends[KEY] = 4, 1033.0
    assert await limits._hit(MINUTE, "key/k1", 0) == RateLimitStatus(9, 4, 1033.0)
    assert await limits._hit(MINUTE, "key/k1", 2) == RateLimitStatus(9, 6, 1033.0)
    assert [call[0] for call in storage.calls] == ["get", "get_expiry", "incr"]
    storage.used[KEY], storage.ends[KEY] = 3, 1080.0  # it ended early there, and others have counted since
    assert await limits._hit(MINUTE, "key/k1", 1) == RateLimitStatus(9, 4, 1080.0)
    storage.used[KEY] = 0
    clock.seconds = 1025.0
    assert await limits._hit(MINUTE, "key/k1", 2) == RateLimitStatus(9, 2, 1085.0)


async def test_ended_windows_are_dropped_once_there_are_many(clock, monkeypatch):
    monkeypatch.setattr("services.gateway.policy.quotas._MAX_WINDOWS", 2)
    limits = RateLimiter(Settings(auth="keys"))
    for second, name in enumerate("abc"):
        clock.seconds = 1000.0 + second
        await limits._hit(MINUTE, name, 1)
    clock.seconds = 1061.0  # b ends now, c in a second
    await limits._hit(MINUTE, "d", 1)
    assert set(limits._windows) == {MINUTE.key_for("c"), MINUTE.key_for("d")}
    clock.seconds = 1062.0
    await limits._hit(MINUTE, "e", 1)
    assert len(limits._windows) == 3


LONGCTX = {"kv_bytes": 4096, "cached_tokens": 3}
CHOICES = [{"message": {"content": 'I say "usage": {"prompt_tokens": 1000}'}}]
USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12, "longctx": LONGCTX}
ANSWER = {"model": "smol", "choices": CHOICES, "usage": USAGE}


def streaming(pieces: Iterable[bytes], pause_s: float = 0) -> Route:
    async def stream(_request: Any) -> StreamingResponse:
        async def parts() -> Any:
            for piece in pieces:
                yield piece
                if pause_s:
                    await asyncio.sleep(pause_s)

        return StreamingResponse(parts(), media_type="text/event-stream")

    return Route("/v1/stream", stream, methods=["POST"])


def write_event(content: object) -> bytes:
    return f"data: {json.dumps({'model': 'smol', 'choices': [{'delta': {'content': str(content)}}]})}\n\n".encode()


def chatting() -> list[Route]:
    async def chat(_request: Any) -> JSONResponse:
        return JSONResponse(ANSWER, headers={USAGE_HEADER: json.dumps({"pictures": 2, "cpu_seconds": 0.25, "x": 1})})

    async def drawn(_request: Any) -> Response:
        return Response(b"\x89PNG", headers={USAGE_HEADER: '{"model": "smol"}'}, media_type="image/png")

    text = b"".join(map(write_event, range(4))) + b"data: [DONE]\n\n"
    stream = streaming([text[i : i + 7] for i in range(0, len(text), 7)])
    return [stream, *(Route(f"/v1/{each.__name__}", each, methods=["POST"]) for each in (chat, drawn))]


async def test_a_tenant_sees_what_it_consumed(gateway, toy, ring):
    alice, bob = (ring.add(name, ("infer",), rate_per_minute=1000)[1] for name in ("alice", "bob"))
    admin, scene = ring.add("ops", ("admin",))[1], await gateway(auth="keys")
    scene.announce((await toy(extra=chatting())).url, routes=("/v1/chat", "/v1/stream", "/v1/drawn"))

    async def ask(path: str, key: str, method: str = "GET", **more: Any) -> Any:
        return await scene.client.request(method, path, headers={"x-api-key": key, **more})

    answer = await ask("/v1/chat", alice, "POST")
    assert (answer.json(), USAGE_HEADER in answer.headers) == (ANSWER, False)
    await ask("/v1/stream", alice, "POST")
    await ask("/v1/drawn", alice, "POST")  # a picture names no model: its replica does
    (record,) = (await ask("/v1/usage", alice)).json()["usage"]
    assert record["day"] == datetime.now(UTC).date().isoformat()
    assert (record["tenant"], record["model"], record["requests"]) == ("alice", "smol", 3)
    assert (record["tokens_in"], record["tokens_out"], record["cached_tokens"]) == (7, 5 + 4, 3)
    assert (record["pictures"], record["cpu_seconds"], record["kv_byte_seconds"] > 0) == (2, 0.25, True)
    assert (await ask("/v1/usage", bob)).json() == {"usage": []}
    assert (await ask("/v1/usage?tenant=alice", bob)).status_code == 403
    assert len((await ask("/v1/usage?tenant=*", admin)).json()["usage"]) == 1
    table = await ask("/v1/usage", alice, accept="text/csv")
    (row,) = csv.DictReader(io.StringIO(table.text))
    assert (row["tenant"], row["tokens_out"]) == ("alice", "9")
    for day, count in ((29, 1), (30, 0)):  # the last thirty days, this one included
        until = datetime.now(UTC).date() + timedelta(day)
        assert len((await ask(f"/v1/usage?until={until}", alice)).json()["usage"]) == count
    for day in ("0001-01-01", "9999-12-31"):
        assert (await ask(f"/v1/usage?until={day}", alice)).json() == {"usage": []}
    for bad in ("since=x", "since=2020-01-01", "since=2026-02-02&until=2026-01-01", "format=xml"):
        assert (await ask(f"/v1/usage?{bad}", alice)).status_code == 422


async def test_tokens_are_counted_against_the_key(gateway, toy, ring):
    key, scene = ring.add("alice", ("infer",), tokens_per_minute=12)[1], await gateway(auth="keys")
    scene.announce((await toy(extra=chatting())).url, routes=("/v1/chat",))
    answers = [await scene.client.post("/v1/chat", headers={"x-api-key": key}) for _ in range(2)]
    assert ([answer.status_code for answer in answers], answers[1].headers["x-ratelimit-limit"]) == ([200, 429], "12")
    assert "12 tokens per minute" in answers[1].text
    (limit,) = (await scene.client.get("/v1/usage/limits", headers={"x-api-key": key})).json()["limits"][-1:]
    assert (limit["unit"], limit["used"]) == ("tokens per minute", 12)


async def test_a_stream_without_usage_counts_its_prompt_and_its_tokens_also_if_it_is_left(gateway, toy, ring):
    event = b'data: {"choices": [{"delta": {"content": "several tokens"}}]}\n\n'
    comments = [b': usage {"tokens_in": 900.0}\n\n', b': usage {"tokens_in": 900.0, "tokens_out": 7.0}\n\n']
    stream = streaming((event + comments[0], event, comments[1] + b"data: [DONE]\n\n"), 0.02)
    key, scene = ring.add("alice", ("infer",), tokens_per_day=1000)[1], await gateway(auth="keys")
    scene.announce((await toy(extra=[stream])).url, routes=("/v1/stream",))
    scene.client.headers["x-api-key"] = key
    answers = [await scene.client.post("/v1/stream") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[0].content == event * 2 + b"data: [DONE]\n\n"
    (record,) = (await scene.client.get("/v1/usage")).json()["usage"]
    assert (record["tokens_in"], record["tokens_out"]) == (1800, 14)
    key, scene = ring.add("alice", ("infer",), tokens_per_day=2)[1], await gateway(auth="keys")
    upstream = await toy(extra=[streaming(map(write_event, range(1000)), 0.01)])
    scene.announce(upstream.url, routes=("/v1/stream",))
    scene.client.headers["x-api-key"] = key
    async with scene.client.stream("POST", "/v1/stream") as answer:
        lines = answer.aiter_lines()
        for _ in range(8):
            await anext(lines)
    for _ in range(100):
        if (again := await scene.client.post("/v1/models")).status_code == 429:
            break
        await asyncio.sleep(0.02)
    assert "2 tokens per day" in again.text


async def test_the_ledger_survives_an_outage_and_a_restart_and_a_stop_amid_a_write(own_redis, monkeypatch):
    ledger, today = UsageLedger(own_redis.url), datetime.now(UTC).date()
    ledger.add("alice", "m", {"tokens_in": 5})
    await ledger.flush()
    own_redis.kill()
    ledger.add("alice", "m", {"tokens_in": 6})
    with pytest.raises((RedisError, OSError)):
        await ledger.flush()
    own_redis.start()
    await ledger.stop()
    other = UsageLedger(own_redis.url)
    (record,) = await other.read("alice", today, today)
    assert (record.requests, record.tokens_in, await other.read("bob", today, today)) == (2, 11, [])
    monkeypatch.setattr("shared.jobs.usage_ledger._FLUSH_S", 0.01)
    ledger = UsageLedger(own_redis.url)
    await ledger._redis.client_pause(500)
    ledger.add("alice", "m", {"tokens_in": 7})
    await asyncio.sleep(0.2)
    await ledger.stop()
    assert (await other.read("alice", today, today))[0].tokens_in == 18
    await other.stop()


def test_what_answers_say_is_read_and_what_they_quote_is_not():
    scanner = UsageScanner(is_stream=False)
    scanner.feed(json.dumps(ANSWER).encode())
    assert scanner.sum_up(2.0) == {"tokens_in": 7, "tokens_out": 5, "cached_tokens": 3, "kv_byte_seconds": 8192}
    reranked = UsageScanner(is_stream=False)
    reranked.feed(b'{"model": "minilm", "results": [], "usage": {"total_tokens": 31}}')
    assert reranked.sum_up(1)["tokens_in"] == 31
    anthropic = UsageScanner(is_stream=True)  # whose input tokens leave out the cached ones
    usage = {"input_tokens": 4, "output_tokens": 5, "cache_read_input_tokens": 3}
    event = json.dumps({"type": "message_delta", "usage": usage})
    anthropic.feed(f"event: message_delta\ndata: {event}\n\n".encode())
    assert anthropic.sum_up(2.0) == {"tokens_in": 7, "tokens_out": 5, "cached_tokens": 3, "kv_byte_seconds": 0}
    cut = UsageScanner(is_stream=True)  # of the Responses API, which states its usage at the end
    cut.feed(b'data: {"type": "response.output_text.delta", "delta": "x"}\n\n' * 3)
    assert cut.sum_up(1)["tokens_out"] == 3
    hung_up = UsageScanner(is_stream=True)  # on Anthropic's form, whose first event states what was read
    hung_up.feed(b'data: {"type": "message_start", "message": {"mod')
    hung_up.feed(b'el": "smol", "usage": {"input_tokens": 4, "output_tokens": 0}}}\n\n')
    hung_up.feed(b'data: {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "x"}}\n\n' * 3)
    assert [hung_up.model, *(hung_up.sum_up(1)[name] for name in ("tokens_in", "tokens_out"))] == ["smol", 4, 3]
    told, quoted = b': usage {"tokens_in": 9.0}\n\n', b'data: {"x": ": usage {}"}\n\n: still here\n\n'
    for size in (1, 2, 7, 1000):  # however it is cut, callers get what is no comment on usage
        whole, scanner = told * 2 + quoted + told, UsageScanner(is_stream=True)
        assert b"".join(scanner.feed(whole[at : at + size]) for at in range(0, len(whole), size)) == quoted
    for broken in (b"", b"[]", b'{"usage": 5}', b'{"usage": {"prompt_tokens": "x", "completion_tokens": -1}}', b"\xff"):
        scanner = UsageScanner(is_stream=False)
        scanner.feed(broken)
        assert set(scanner.sum_up(1.0).values()) <= {0}
    assert find_model(b'{"model": "a/b"}') == "a/b"
    assert read_header("[1]") == read_header("{") == read_header(None) == {}


async def test_without_redis_the_oldest_days_go_before_the_rows_are_too_many(monkeypatch):
    monkeypatch.setattr("shared.jobs.usage_ledger._MAX_SUMS", 4)
    ledger, today = UsageLedger(None), datetime.now(UTC).date()
    for days in (3, 3, 2, 1):
        ledger._add_to(("ann", today - timedelta(days), f"m{len(ledger._sums)}"), {"requests": 1.0})
    ledger.add("ann", "new", {})
    found = await ledger.read("ann", today - timedelta(9), today)
    assert [record.day for record in found] == [today, today - timedelta(1), today - timedelta(2)]


ONE = """# HELP fovea_requests_total Requests by outcome.
# TYPE fovea_requests_total counter
fovea_requests_total{service="s",status="200"} 3.0
"""
TWO = f"""{ONE.replace("3.0", "4.0")}# HELP fovea_batch_size Requests.
# TYPE fovea_batch_size histogram
fovea_batch_size_bucket{{le="1.0"}} 1.0
fovea_batch_size_bucket{{le="+Inf"}} 2.0
fovea_batch_size_count 2.0
fovea_batch_size_sum 5.0
"""


def test_each_sample_says_which_replica_it_came_from_and_families_are_announced_once():
    merged = merge_metrics({"a": ONE, "b": TWO, "x": "{not metrics"})
    found = {family.name: family for family in text_string_to_metric_families(merged.decode())}
    assert found.keys() == {"fovea_requests", "fovea_batch_size"}, "what is no metrics text is left out"
    assert {s.labels["replica"]: s.value for s in found["fovea_requests"].samples} == {"a": 3.0, "b": 4.0}
    assert merged.count(b"# TYPE fovea_requests_total counter") == 1
    assert [s.value for s in found["fovea_batch_size"].samples if s.name.endswith("_bucket")] == [1.0, 2.0]
