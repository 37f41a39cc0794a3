"""Rates and quotas: counted in a real Redis, and in the process while Redis is away."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
import redis

from services.gateway.policy.auth import KeyRing
from services.gateway.policy.caller import LOCAL, Caller, KeyLimits
from services.gateway.policy.rate_limits import QuotaSpent, RateLimiter
from shared.errors import RateLimited
from shared.jobs.redis_server import RedisServer
from shared.settings import Settings

ANN = Caller("ann", frozenset({"infer"}), "k1", KeyLimits(rate_per_minute=3))


async def spend(limits: RateLimiter, caller: Caller) -> int:
    """Requests until the first refusal."""
    count = 0
    while count < 100:
        try:
            await limits.count(caller)
        except RateLimited:
            return count
        count += 1
    return count


async def test_a_local_gateway_limits_nobody_unless_told_to() -> None:
    assert await RateLimiter(Settings()).count(LOCAL) is None
    assert await spend(RateLimiter(Settings(rate_limit_rpm=4)), LOCAL) == 4


async def test_a_keys_own_rate_wins_over_the_common_one() -> None:
    limits = RateLimiter(Settings(auth="keys", rate_limit_rpm=5))
    assert await spend(limits, ANN) == 3
    assert await spend(limits, Caller("bob", frozenset(), "k2")) == 5


async def test_keys_of_one_tenant_share_the_common_rate() -> None:
    limits = RateLimiter(Settings(auth="keys", rate_limit_rpm=5))
    await limits.count(Caller("bob", frozenset(), "k2"))
    await limits.count(Caller("bob", frozenset(), "k3"))
    assert await spend(limits, Caller("bob", frozenset(), "k2")) == 3


async def test_a_spent_day_is_refused_until_tomorrow() -> None:
    limits = RateLimiter(Settings(auth="keys"))
    caller = Caller("ann", frozenset(), "k1", KeyLimits(quota_per_day=2))
    assert await spend(limits, caller) == 2
    with pytest.raises(RateLimited, match="day") as refused:
        await limits.count(caller)
    assert 80_000 < (refused.value.retry_after or 0) <= 86_400


async def test_gateways_agree_through_redis(redis_url: str) -> None:
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
async def test_counting_goes_on_while_redis_is_away(own_redis: RedisServer) -> None:
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


async def test_a_burst_waits_for_connections_and_is_not_an_outage(redis_url: str) -> None:
    limits = RateLimiter(Settings(auth="keys", redis_url=redis_url))
    many = Caller("ann", frozenset(), "k9", KeyLimits(rate_per_minute=1000))
    counted = await asyncio.gather(*(limits.count(many) for _ in range(400)))
    assert sorted(status.used for status in counted if status) == list(range(1, 401))
    with redis.Redis.from_url(redis_url) as client:
        assert client.info("clients")["connected_clients"] < 50
    assert limits._redis_retry_at == 0
    await limits.stop()


@pytest.mark.parametrize("shared", [True, False])
async def test_tokens_are_counted_when_they_are_known(redis_url: str, shared: bool) -> None:
    limits = RateLimiter(Settings(auth="keys", redis_url=redis_url if shared else None))
    caller = Caller("ann", frozenset(), "k5", KeyLimits(tokens_per_minute=100, tokens_per_day=150))
    await limits.count(caller)
    await limits.spend_tokens(caller, 99)
    await limits.count(caller)
    await limits.spend_tokens(caller, 60)
    with pytest.raises(QuotaSpent, match="100 tokens per minute") as refused:
        await limits.count(caller)
    assert refused.value.code == "rate_limited"
    await limits.stop()


async def test_headers_say_where_a_caller_stands_and_when_to_come_back(gateway: Any, toy: Any, tmp_path: Path) -> None:
    _, text = KeyRing(tmp_path / "keys.json").add("ann", ("infer",), rate_per_minute=2)
    scene = await gateway(auth="keys")
    scene.announce((await toy()).url)
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
