"""Rates and quotas: counted in a real Redis, and in the process while Redis is away."""

import asyncio
import time
import types
from typing import Any

import pytest
import redis
from limits import RateLimitItemPerMinute
from structlog.testing import capture_logs

from fovea.errors import RateLimited
from services.gateway.policy.caller import LOCAL, Caller, KeyLimits
from services.gateway.policy.quotas import QuotaSpent, RateLimiter, RateLimitStatus
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


async def test_nothing_is_limited_or_counted_unless_told_to():
    assert await RateLimiter(Settings()).count(LOCAL) is None
    assert await spend(RateLimiter(Settings(rate_limit_rpm=4)), LOCAL) == 4
    limits = RateLimiter(Settings())
    await limits.spend_tokens(Caller("ann", frozenset(), "k1", KeyLimits(tokens_per_day=1)), 5)
    assert limits._windows == {}
    assert RateLimiter(Settings(redis_url="redis://127.0.0.1:1"))._shared is None


async def test_a_keys_own_rate_wins_over_the_common_one_which_keys_of_a_tenant_share():
    limits = RateLimiter(Settings(auth="keys", rate_limit_rpm=5))
    assert await spend(limits, ANN) == 3
    assert await spend(limits, Caller("bob", frozenset(), "k2")) == 5
    limits = RateLimiter(Settings(auth="keys", rate_limit_rpm=5))
    await limits.count(Caller("bob", frozenset(), "k2"))
    await limits.count(Caller("bob", frozenset(), "k3"))
    assert await spend(limits, Caller("bob", frozenset(), "k2")) == 3


async def test_gateways_agree_through_redis(redis_url):
    one, two = (RateLimiter(Settings(auth="keys", redis_url=redis_url)) for _ in range(2))
    first, second = await one.count(ANN), await two.count(ANN)
    assert first is not None
    assert second is not None
    assert (first.used, second.used) == (1, 2)
    assert abs(first.resets_at - second.resets_at) < 2
    assert 55 < second.wait_s <= 61
    assert await spend(one, ANN) == 1
    await one.stop()
    await two.stop()


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


async def test_a_burst_waits_for_connections_and_is_not_an_outage(redis_url):
    limits = RateLimiter(Settings(auth="keys", redis_url=redis_url))
    many = Caller("ann", frozenset(), "k9", KeyLimits(rate_per_minute=1000))
    counted = await asyncio.gather(*(limits.count(many) for _ in range(400)))
    assert sorted(status.used for status in counted if status) == list(range(1, 401))
    with redis.Redis.from_url(redis_url) as client:
        assert client.info("clients")["connected_clients"] < 50
    assert limits._redis_retry_at == 0
    await limits.stop()


async def test_tokens_are_counted_when_they_are_known(redis_url):
    limits = RateLimiter(Settings(auth="keys", redis_url=redis_url))
    caller = Caller("ann", frozenset(), "k5", KeyLimits(tokens_per_minute=100, tokens_per_day=150))
    await limits.count(caller)
    await limits.spend_tokens(caller, 99)
    await limits.count(caller)
    await limits.spend_tokens(caller, 60)
    with pytest.raises(QuotaSpent, match="100 tokens per minute") as refused:
        await limits.count(caller)
    assert refused.value.code == "rate_limited"
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


async def test_a_window_ends_after_its_minute_and_begins_anew(clock):
    limits = RateLimiter(Settings(auth="keys"))
    assert await limits.count(ANN) == RateLimitStatus(3, 1, 1060.0)
    clock.seconds = 1059.9
    assert await limits.count(ANN) == RateLimitStatus(3, 2, 1060.0)
    clock.seconds = 1060.0
    assert await limits.count(ANN) == RateLimitStatus(3, 1, 1120.0)


async def test_a_refusal_says_what_is_spent_and_when_it_is_back(clock):
    limits = RateLimiter(Settings(auth="keys"))
    for _ in range(3):
        await limits.count(ANN)
    with pytest.raises(QuotaSpent) as refused:
        await limits.count(ANN)
    assert refused.value.detail == "3 requests per minute are allowed, and all are used."
    assert (refused.value.hint, refused.value.retry_after) == ("Try again in 60 s.", 60.0)
    assert refused.value.counter == RateLimitStatus(3, 4, 1060.0)
    clock.seconds = 1058.5
    with pytest.raises(QuotaSpent) as refused:
        await limits.count(ANN)
    assert (refused.value.hint, refused.value.retry_after) == ("Try again in 2 s.", 1.5)
    clock.seconds = 1059.7
    with pytest.raises(QuotaSpent) as refused:
        await limits.count(ANN)
    assert (refused.value.hint, refused.value.retry_after) == ("Try again in 1 s.", 1.0)
    assert [value for _, value in refused.value.counter.headers] == [b"3", b"0", b"1"]


@pytest.mark.parametrize(
    ("quota", "unit"),
    [
        (KeyLimits(quota_per_day=1), "1 requests per day"),
        (KeyLimits(tokens_per_minute=1), "1 tokens per minute"),
        (KeyLimits(tokens_per_day=1), "1 tokens per day"),
    ],
)
async def test_each_quota_has_its_unit_and_its_window(clock, quota, unit):
    limits, caller = RateLimiter(Settings(auth="keys")), Caller("ann", frozenset(), "k1", quota)
    await limits.spend_tokens(caller, 0)
    await limits.spend_tokens(caller, -5)
    assert limits._windows == {}
    await limits.count(caller)
    await limits.spend_tokens(caller, 1)
    with pytest.raises(QuotaSpent, match=f"^{unit} are allowed") as refused:
        await limits.count(caller)
    assert (refused.value.retry_after, refused.value.counter.used) == (86_400 if "day" in unit else 60, 2)
    other = Caller("ann", frozenset(), "k2", quota)
    assert await limits.count(other) is not None


async def test_hits_that_redis_missed_are_sent_when_it_is_back(stored, clock):
    limits, storage = stored
    assert await limits._hit(MINUTE, "key/k1", 2) == RateLimitStatus(9, 2, 1060.0)
    storage.is_away = True
    clock.seconds = 1010.0
    with capture_logs() as told:
        assert await limits._hit(MINUTE, "key/k1", 1) == RateLimitStatus(9, 3, 1060.0)
    assert [line["reason"] for line in told] == ["no Redis here"]
    calls = len(storage.calls)
    clock.seconds = 1011.9
    assert await limits._hit(MINUTE, "key/k1", 3) == RateLimitStatus(9, 6, 1060.0)
    assert len(storage.calls) == calls, "Redis is left alone for two seconds"
    clock.seconds = 1012.0
    assert await limits._hit(MINUTE, "key/k1", 1) == RateLimitStatus(9, 7, 1060.0)
    assert len(storage.calls) == calls + 1
    storage.is_away = False
    clock.seconds = 1014.0
    assert await limits._hit(MINUTE, "key/k1", 1) == RateLimitStatus(9, 8, 1060.0)
    assert storage.calls[-1] == ("incr", KEY, 60, 6)
    assert await limits._hit(MINUTE, "key/k1", 1) == RateLimitStatus(9, 9, 1060.0)
    assert storage.calls[-1] == ("incr", KEY, 60, 1)


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


async def test_counters_in_redis_have_a_prefix_and_end_by_themselves(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        others = client.info("clients")["connected_clients"]
        limits = RateLimiter(Settings(auth="keys", redis_url=redis_url))
        await limits.count(ANN)
        await limits.stop()
        (key,) = client.keys()
        assert key.decode().startswith("fovea:limits")
        assert b"key/k1" in key
        assert 55 < client.ttl(key) <= 60
        assert client.info("clients")["connected_clients"] <= others
