"""A service is wanted while its key is in Redis, read once a second; the last answer stands while Redis is away."""

import importlib
from types import SimpleNamespace

import pytest
import redis

from fovea.api.replica import wanted_key
from shared.serving import wanted
from shared.settings import settings


@pytest.fixture
def now(redis_url, monkeypatch, clock):
    clock.govern(wanted)
    monkeypatch.setenv("FOVEA_REDIS_URL", redis_url)
    settings.cache_clear()
    wanted._open.cache_clear()
    clock.advance(1)
    yield clock
    settings.cache_clear()


def test_who_waits_is_read_once_a_second_and_stays_wanted_while_redis_is_away(now, redis_url, monkeypatch):
    link = redis.Redis.from_url(redis_url)
    assert not wanted.is_wanted("svc")
    link.set(wanted_key("svc"), "1")
    assert not wanted.is_wanted("svc")
    now.advance(1.01)
    assert wanted.is_wanted("svc")
    assert not wanted.is_wanted("other")
    monkeypatch.setattr(wanted._open(redis_url, "svc")._redis, "exists", _refuse)
    now.advance(1.01)
    assert wanted.is_wanted("svc")
    link.close()


def _refuse(_key: str) -> int:
    raise redis.ConnectionError("away")


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")
@pytest.mark.parametrize(
    ("low", "target", "busy", "is_wanted", "replicas"),
    [
        (0, 0, {}, False, 0), (0, 0, {}, True, 1), (0, 1, {}, False, 1), (0, 1, {"r1": 0}, False, 0),
        (0, 1, {"r1": 0}, True, 1), (0, 1, {"r1": 1}, False, 1), (0, 1, {"r1": 17}, True, 3), (1, 1, {}, True, 1),
        (1, 1, {}, False, 1), (1, 1, {"r1": 0}, False, 1), (1, 1, {"r1": 8}, False, 1), (1, 1, {"r1": 9}, False, 2),
        (1, 1, {"r1": 8, "r2": 8, "r3": 8}, False, 3), (1, 1, {"r1": 99}, False, 4),
    ],
)  # fmt: skip
def test_replicas_grow_with_requests_in_flight_and_a_service_without_has_one_while_it_is_wanted_or_starts(
    monkeypatch, low, target, busy, is_wanted, replicas
):
    ours = importlib.import_module("shared.serving.ray")
    monkeypatch.setattr(ours, "is_wanted", lambda service: is_wanted and service == "svc")
    context = SimpleNamespace(
        aggregated_metrics={"busy": busy} if busy else {},
        target_num_replicas=target,
        capacity_adjusted_min_replicas=low,
        capacity_adjusted_max_replicas=4,
    )
    assert ours.scale(context, 8, "svc") == (replicas, {})
