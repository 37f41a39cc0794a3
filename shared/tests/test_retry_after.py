"""Refused callers get a Retry-After that fits the queue and its rate."""

import pytest

from shared import retry_after
from shared.retry_after import PlaceEstimate


@pytest.fixture
def places(clock):
    clock.govern(retry_after)
    return PlaceEstimate()


def test_each_caller_is_sent_away_for_as_long_as_its_place_takes(places, clock):
    for name in range(4):
        places.enter(name)
        clock.advance(20)
    for name in range(2):  # held for 80 and for 80 seconds
        places.leave(name)
        clock.advance(20)
        places.enter(name + 10)
    assert [round(places.send_away()) for _ in range(4)] == [20, 40, 60, 60]
    places.leave(2)
    places.enter(12)
    clock.advance(0)
    assert round(places.send_away()) == 60, "three still stand before it"


def test_nobody_is_sent_away_for_less_than_a_second_and_a_new_queue_goes_by_its_age(places, clock):
    assert places.send_away() == 1
    places.enter("a")
    places.leave("b")
    clock.advance(30)
    assert places.send_away() == 60
    places.leave("a")
    places.enter("c")
    assert places.send_away() == 30, "a queue that was empty has forgotten whom it sent away"
