"""Jobs within the limits of their keys: tokens that a job spends count where requests count, and stop the next job."""

import json
from typing import Any

import pytest
import redis

from fovea.errors import RateLimited
from services.gateway.policy.caller import Caller, KeyLimits
from services.gateway.policy.quotas import RateLimiter
from shared.jobs.key_limits import JobKeyLimits
from shared.jobs.queue import Payload, Result
from shared.jobs.usage_ledger import UsageLedger
from shared.serving.jobs.job_runner import charge_jobs
from shared.settings import Settings

ANSWER = {"model": "smol", "usage": {"prompt_tokens": 7, "completion_tokens": 8}}


@pytest.fixture
async def limits(redis_url):
    made = JobKeyLimits(redis_url)
    yield made
    await made.stop()


async def answer(_payload: Payload, _ticket: Any) -> Result:
    return Result(200, "application/json", json.dumps(ANSWER).encode())


@pytest.mark.parametrize("quota", ["tokens_per_day", "tokens_per_minute"])
async def test_tokens_of_jobs_and_requests_count_against_the_quota_of_their_key_alone(redis_url, limits, quota):
    ann = Caller("ann", frozenset({"infer"}), "k1", KeyLimits(**{quota: 20}))
    bob = Caller("bob", frozenset({"infer"}), "k2", KeyLimits(**{quota: 20}))
    gateway = RateLimiter(Settings(auth="keys", redis_url=redis_url))
    run: Any = charge_jobs(answer, UsageLedger(None), limits)

    async def job(caller: Caller) -> None:
        await run(Payload("svc", "/v1/chat", b"", caller.job_headers, tenant=caller.tenant), None)

    await job(ann)
    await gateway.count(ann)
    await job(ann)
    with pytest.raises(RateLimited, match="20 tokens"):
        await gateway.count(ann)
    with pytest.raises(RateLimited, match="20 tokens", check=lambda told: told.retry_after > 1):
        await job(ann)  # it waits until there are new tokens
    await job(bob)
    await gateway.count(bob)
    await gateway.spend_tokens(bob, 20)
    with pytest.raises(RateLimited):
        await limits.require_usable(bob.job_headers)
    await gateway.stop()
    await limits.require_usable({})
    await limits.spend({}, 100)
    assert Caller("local", frozenset()).job_headers.keys() == {"x-fovea-tenant", "x-fovea-scopes"}


async def test_a_job_waits_for_a_redis_that_is_away_for_a_moment_and_is_no_failed_attempt(limits, monkeypatch):
    ann, look, asked = Caller("ann", frozenset({"infer"}), "k1"), limits._redis.sismember, []

    async def fail_once(*given: str) -> bool:
        asked.append(given)
        if len(asked) == 1:
            raise redis.ConnectionError("Connection reset by peer.")
        return bool(await look(*given))

    monkeypatch.setattr(limits._redis, "sismember", fail_once)
    run: Any = charge_jobs(answer, UsageLedger(None), limits)
    assert (await run(Payload("svc", "/v1/chat", b"", ann.job_headers, tenant="ann"), None)).status == 200
    assert len(asked) == 2
